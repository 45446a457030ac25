"""What a reward costs in divergence from the base: best of n, PPO and DPO on the same planted reward (`planted.py`).

Best of n: n = 1 to 16 on prompts that no training saw, by the unbiased estimator; its divergence is a bound,
log n − (n − 1)/n. PPO: points along one training with a small penalty. DPO: a training for each beta, on pairs of the
base's own replies, the best of 8 over the worst. The divergence of a policy is estimated from what it draws for the
held-out prompts. Writes the figures, and a drawing beside them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from drawing import Point, reward_against_kl
from measured import RESULTS, write_result
from planted import NEW_TOKENS, REWARD, Measured, measure, prompts
from spiritlevel.chat import Chat
from spiritlevel.models import PACKAGED, Sampling, open_local
from spiritlevel.store import ContentStore
from spiritlevel.train import (
    DPO,
    PPO,
    ActorCritic,
    LoraSettings,
    OnlineConfig,
    StepMetrics,
    TrainConfig,
    add_lora,
    best_of_n_kl,
    best_of_n_value,
    best_records,
    draw_rewarded,
    prepare_examples,
    train,
    train_online,
)

NS = (1, 2, 4, 8, 16)
LORA = LoraSettings()


def best_of_n(held_out: Sequence[Chat], seed: int) -> list[Point]:
    sampling = Sampling(NEW_TOKENS, 1.0)
    drawn = draw_rewarded(open_local(PACKAGED), held_out, REWARD, sampling, samples=max(NS), seed=seed)
    points = []
    for n in NS:
        rewards = [[reward for _, reward in replies] for replies in drawn]
        best = [best_of_n_value(of_prompt, of_prompt, n) for of_prompt in rewards]
        error = float(np.std(best) / len(best) ** 0.5)
        points.append(Point(best_of_n_kl(n), float(np.mean(best)), error, f"n = {n}"))
    return points


def ppo(learnt: Sequence[Chat], held_out: Sequence[Chat], iterations: int, every: int, seed: int) -> list[Point]:
    policy = ActorCritic.on(add_lora(open_local(PACKAGED), LORA, seed=seed), LORA, seed=seed + 1)
    online = OnlineConfig(iterations, prompts=8, samples=8, max_new_tokens=NEW_TOKENS)
    config = TrainConfig(1e-3, epochs=1, batch_size=4, seed=seed, save_seconds=1e9)
    points: list[Point] = []

    def on_step(metrics: StepMetrics) -> None:
        iteration = int(metrics["iteration"])
        last_step = metrics["step"] * iterations == iteration * metrics["steps"]
        if last_step and (iteration % every == 0 or iteration == iterations):
            points.append(point(measure(policy, held_out, samples=2, seed=seed), f"iteration {iteration}"))

    with tempfile.TemporaryDirectory() as folder:
        objective = PPO(kl_coefficient=0.02)
        train_online(policy, objective, learnt, REWARD, online, config, Path(folder), on_step=on_step)
    return points


def dpo(
    learnt: Sequence[Chat], held_out: Sequence[Chat], betas: Sequence[float], epochs: int, seed: int
) -> tuple[list[Point], int]:
    """The points, and of how many pairs."""
    drawn = draw_rewarded(open_local(PACKAGED), learnt, REWARD, Sampling(NEW_TOKENS, 1.0), samples=8, seed=seed)
    pairs = best_records(drawn, pairs=True, author=PACKAGED, reward="planted")
    config = TrainConfig(5e-4, epochs=epochs, batch_size=8, seed=seed, save_seconds=1e9)
    points = []
    for beta in sorted(betas, reverse=True):
        base = open_local(PACKAGED)
        with tempfile.TemporaryDirectory() as folder:
            examples = prepare_examples(base, DPO(beta), pairs, store=ContentStore(Path(folder) / "store"))
            policy = add_lora(base, LORA, seed=seed)
            train(policy, DPO(beta), examples, config, Path(folder))
        points.append(point(measure(policy, held_out, samples=2, seed=seed), f"β = {beta:g}"))
    return points, len(pairs)


def point(found: Measured, label: str) -> Point:
    return Point(found.kl, found.reward, found.reward_error, label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", type=int, default=48, help="prompts")
    parser.add_argument("--iterations", type=int, default=16, help="of PPO")
    parser.add_argument("--every", type=int, default=2, help="iterations of PPO between two points")
    parser.add_argument("--pair-prompts", type=int, default=128, help="prompts that DPO's pairs are drawn for")
    parser.add_argument("--betas", nargs="*", type=float, default=[0.02, 0.1, 0.5])
    parser.add_argument("--epochs", type=int, default=2, help="of DPO")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "reward_vs_kl.json")
    given = parser.parse_args()
    learnt, held_out = prompts(given.held_out)
    started = time.monotonic()
    lines: dict[str, Sequence[Point]] = {"best of n": best_of_n(held_out, given.seed)}
    show("best of n", lines)
    base = replace(lines["best of n"][0], label="base")
    lines["PPO"] = [base, *ppo(learnt, held_out, given.iterations, given.every, given.seed)]
    show("PPO", lines)
    points, pairs = dpo(learnt[: given.pair_prompts], held_out, given.betas, given.epochs, given.seed)
    lines["DPO"] = [base, *points]
    show("DPO", lines)
    settings = {name: value for name, value in vars(given).items() if name != "out"} | {"pairs": pairs}
    found: dict[str, Any] = {name: [vars(one) for one in line] for name, line in lines.items()}
    write_result(given.out, settings=settings, seconds=time.monotonic() - started, points=found)
    title = "Mean reward on held-out prompts against the divergence from the base, by method"
    given.out.with_suffix(".svg").write_text(reward_against_kl(lines, title=title), encoding="utf-8")


def show(name: str, lines: dict[str, Sequence[Point]]) -> None:
    for one in lines[name]:
        print(f"{name:10} {one.label:14} KL {one.kl:6.2f} nats, reward {one.reward:.3f} ± {one.error:.3f}", flush=True)


if __name__ == "__main__":
    main()
