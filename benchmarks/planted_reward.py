"""PPO, GRPO and RLOO each find a planted reward on a small machine, without leaving the base too far.

The reward (`planted.py`) is a point for a reply that says "you" twice. Solved: a mean reward of at least 0.8 on prompts
that no training saw, in at most five minutes of training. Within its target: a divergence of a reply from the base of
at most 1.1 times 6 nats there, PPO's steered to that target, the others' held by a constant weight. With hardly any
penalty the reward comes sooner, from replies such as "You you you" at a divergence of 38 nats.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from measured import RESULTS, write_result
from planted import NEW_TOKENS, REWARD, measure, prompts
from spiritlevel.models import PACKAGED, open_local
from spiritlevel.train import (
    GRPO,
    PPO,
    RLOO,
    ActorCritic,
    LoraSettings,
    OnlineConfig,
    StepMetrics,
    TrainConfig,
    add_lora,
    train_online,
)

ENOUGH, MINUTES, KL_TARGET, KL_SLACK = 0.8, 5, 6.0, 1.1
# kl_gain: much, since a run has but fourteen iterations.
METHODS = {
    "ppo": PPO(kl_coefficient=0.1, kl_target=KL_TARGET, kl_gain=0.5),
    "grpo": GRPO(kl_weight=0.15, max_new_tokens=NEW_TOKENS),
    "rloo": RLOO(kl_coefficient=0.08),
}
LEARNING_RATE, PROMPTS, SAMPLES, PROMPTS_A_STEP = 1e-3, 8, 8, 4


def one_run(method: str, seed: int, iterations: int, held_out: int) -> dict[str, Any]:
    learnt, unseen = prompts(held_out)
    objective = METHODS[method]
    policy = add_lora(open_local(PACKAGED), LoraSettings(), seed=seed)
    if objective.needs_values:
        policy = ActorCritic.on(policy, LoraSettings(), seed=seed + 1)
    before = measure(policy, unseen, samples=4, seed=seed)
    online = OnlineConfig(iterations, prompts=PROMPTS, samples=SAMPLES, max_new_tokens=NEW_TOKENS)
    config = TrainConfig(LEARNING_RATE, epochs=1, batch_size=PROMPTS_A_STEP, seed=seed, save_seconds=1e9)
    curve: list[dict[str, float]] = []
    started = time.monotonic()

    def on_step(metrics: StepMetrics) -> None:
        if len(curve) < metrics["iteration"]:
            told = ("iteration", "reward", "kl", "entropy", "length")
            curve.append({name: metrics[name] for name in told} | {"seconds": 0.0})
        curve[-1]["seconds"] = time.monotonic() - started

    with tempfile.TemporaryDirectory() as folder:
        train_online(policy, objective, learnt, REWARD, online, config, Path(folder), on_step=on_step)
    seconds = time.monotonic() - started
    after = measure(policy, unseen, samples=4, seed=seed)
    return {
        "method": method,
        "seed": seed,
        "seconds": seconds,
        "before": before.as_json(),
        "after": after.as_json(),
        "solved": after.reward >= ENOUGH and seconds <= 60 * MINUTES,
        "within_target": after.kl <= KL_SLACK * KL_TARGET,
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=14)
    parser.add_argument("--held-out", type=int, default=48, help="prompts to judge by, four replies each")
    parser.add_argument("--out", type=Path, default=RESULTS / "planted_reward.json")
    given = parser.parse_args()
    settings = {
        "learning_rate": LEARNING_RATE, "prompts": PROMPTS, "samples": SAMPLES, "prompts_a_step": PROMPTS_A_STEP,
        "iterations": given.iterations, "new_tokens": NEW_TOKENS, "held_out_prompts": given.held_out,
        "methods": {name: asdict(method) for name, method in METHODS.items()},
    }  # fmt: skip
    bars = {"reward": ENOUGH, "minutes": MINUTES, "kl": KL_SLACK * KL_TARGET}
    runs = []
    for method, seed in product(given.methods, given.seeds):
        runs.append(one_run(method, seed, given.iterations, given.held_out))
        show(runs[-1])
        write_result(given.out, settings=settings, bars=bars, runs=runs)
    missed = [run for run in runs if not (run["solved"] and run["within_target"])]
    if missed:
        sys.exit("NOT REACHED: " + ", ".join(f"{run['method']} seed {run['seed']}" for run in missed))
    print("reached by all")


def show(run: dict[str, Any]) -> None:
    before, after = run["before"], run["after"]
    print(
        f"{run['method']:4} seed {run['seed']}: reward {before['reward']:.2f} -> {after['reward']:.2f}"
        f" ± {after['reward_error']:.2f}, KL {after['kl']:.1f} ± {after['kl_error']:.1f} nats a reply,"
        f" {run['seconds']:.0f} s; {'solved' if run['solved'] else 'NOT SOLVED'},"
        f" {'within' if run['within_target'] else 'BEYOND'} its target",
        flush=True,
    )


if __name__ == "__main__":
    main()
