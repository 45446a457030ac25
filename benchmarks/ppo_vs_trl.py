"""An iteration of PPO: seconds and peak memory, ours against the last one that TRL had (1.12, `trl.experimental.ppo`).

Same SmolLM2 with LoRA (r 16, all linear), same prompts, replies of a full length that none ends early, same passes over
them in the same number of steps, same reward head. Ours has one base in memory with an adapter each for policy, value
and reward; TRL's three models. "Default": weights in float32 under bfloat16 autocast, all weights of the value model
trained. "Tuned": weights in bfloat16, LoRA on the value model too, as ours. Each with four replies to a question, with
one, for which there is nothing to share, and with four behind a system prompt of 300 tokens. Seconds are of whole
iterations: drawing, scoring and learning. Correct if at the start, before any step, the ratio of policy and sampler is
1 and the divergence from the reference 0, on both sides.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import RESULTS, run_peer, write_result
from planted import prompts
from rollouts_vs_generate import chats as behind_a_system_prompt
from spiritlevel.models import PACKAGED, model_folder
from start import write_start

TRL_SETTINGS = ("default", "tuned")
# Replies a prompt, and whether there is a system prompt.
SHAPES = {"four": (4, False), "one": (1, False), "four, system prompt": (4, True)}
BAR = 3.0
# Of sampler and trainer, which round differently in bfloat16 (by about 0.07 a token): of the mean ratio, and in nats a
# reply.
RATIO, KL = 0.02, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="the interpreter of an environment that has trl==1.12.0")
    parser.add_argument("--replies", type=int, default=32, help="an iteration")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4, help="passes over an iteration's replies")
    parser.add_argument("--minibatches", type=int, default=4, help="steps a pass")
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--settings", nargs="*", choices=TRL_SETTINGS, default=list(TRL_SETTINGS))
    parser.add_argument("--out", type=Path, default=RESULTS / "ppo_vs_trl.json")
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = write_start(Path(folder), seed=0)
        for shape in given.shapes:
            samples, long = SHAPES[shape]
            count = given.replies // samples
            job = {
                "folder": folder, "model": str(model_folder(PACKAGED)), "samples": samples,
                "prompts": behind_a_system_prompt(model, count) if long else prompts(0)[0][:count],
                "new_tokens": given.new_tokens, "epochs": given.epochs, "minibatches": given.minibatches,
                "iterations": given.iterations, "learning_rate": 1e-4, "token_budget": 2048, "seed": 0,
            }  # fmt: skip
            ours = one_run(sys.executable, "ours_ppo.py", job)
            for setting in given.settings:
                trl = one_run(given.trl_python, "trl_ppo.py", job | {"tuned": setting == "tuned"})
                name = f"{setting}; {shape}"
                figures[name] = compared(ours, trl)
                show(name, figures[name])
    versions = {"ours": ours["versions"], "trl": trl["versions"]}
    sizes = ("replies", "new_tokens", "epochs", "minibatches", "iterations")
    settings = {size: getattr(given, size) for size in sizes}
    write_result(given.out, settings=settings, bar=BAR, versions=versions, figures=figures)
    verdict(figures)


def one_run(python: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
    """The timed run, and what a first step that takes all of 16 replies at once says."""
    found = run_peer(python, script, job)
    few = job["prompts"][: max(1, 16 // job["samples"])]
    start = run_peer(python, script, job | {"prompts": few, "epochs": 1, "minibatches": 1, "iterations": 1})
    replies = len(job["prompts"]) * job["samples"] * job["iterations"]
    return found | {
        "seconds_per_iteration": found["seconds"] / job["iterations"],
        "samples_per_second": replies / found["seconds"],
        "at_the_start": {name: start["history"][0][name] for name in ("ratio", "kl")},
    }


def compared(ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, Any]:
    shown = ("seconds_per_iteration", "samples_per_second", "peak_gb", "tokens", "at_the_start", "history")
    return {
        "ours": {name: ours[name] for name in shown},
        "trl": {name: trl[name] for name in shown},
        "speed_ratio": ours["samples_per_second"] / trl["samples_per_second"],
        "memory_ratio": ours["peak_gb"] / trl["peak_gb"],
    }


def show(name: str, figure: dict[str, Any]) -> None:
    sides = " | ".join(
        f"{title} {side['samples_per_second']:.2f} replies/s {side['peak_gb']:.1f} GB, at the start ratio"
        f" {side['at_the_start']['ratio']:.4f} KL {side['at_the_start']['kl']:.3f}"
        for title, side in (("ours", figure["ours"]), ("TRL", figure["trl"]))
    )
    print(f"{name:28} {sides} | {figure['speed_ratio']:.1f}x speed, {figure['memory_ratio']:.2f}x memory", flush=True)


def verdict(figures: dict[str, Any]) -> None:
    for name, figure in figures.items():
        for side in ("ours", "trl"):
            start = figure[side]["at_the_start"]
            if abs(start["ratio"] - 1) > RATIO or abs(start["kl"]) > KL:
                sys.exit(f"NOT CORRECT: {side}, {name}: {start}")
    if slow := [name for name, figure in figures.items() if figure["speed_ratio"] < BAR]:
        sys.exit(f"NOT REACHED: {BAR}x against {'; '.join(slow)}")


if __name__ == "__main__":
    main()
