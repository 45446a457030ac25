"""Every training method on SmolLM2-135M with its example configuration, and what each did to the model.

Runs `spiritlevel train METHOD --config examples/training/METHOD.yaml` for each (a finished one is not run again), then
measures all on the 42 pairs of `more_pairs.jsonl`, which none was trained on: the share of pairs whose chosen reply
gained more than the rejected one, log π/π_ref (the accuracy of the implicit reward); the reward of `plain.py` for one
sampled reply to each prompt, by which ppo, grpo and rloo learn; and the divergence of these replies, log π/π_ref summed
over a reply. A reward model is judged by its own accuracy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from measured import HERE, RESULTS, write_result
from spiritlevel.data import Preference, read_preferences
from spiritlevel.models import PACKAGED, Fork, InProcess, LocalModel, Sampling, open_local
from spiritlevel.stats import wilson
from spiritlevel.train import OBJECTIVES, ONLINE, load_function, pair_fork

EXAMPLES = HERE.parent / "examples" / "training"
METHODS = (*OBJECTIVES, *ONLINE)
NEW_TOKENS = 64


def trained(method: str, runs: Path) -> dict[str, Any]:
    """What the run's metrics say."""
    out = runs / method
    command = ["train", method, "--config", str(EXAMPLES / f"{method}.yaml"), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "spiritlevel", *command], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    settings = yaml.safe_load((EXAMPLES / f"{method}.yaml").read_text())
    return {
        "settings": {name: value for name, value in settings.items() if name not in ("model", "out")},
        "steps": len(history),
        "step_seconds": sum(row["seconds"] for row in history),
        "memory_gb": max(row["memory_gb"] for row in history),
    }


def measured(policy: LocalModel, base: LocalModel, records: list[Preference], seed: int) -> dict[str, Any]:
    forks = [pair_fork(record, base) for record in records]
    after, before = (np.array(model.score_all(forks)) for model in (policy, base))
    gains = after - before
    won = int((gains[:, 0] > gains[:, 1]).sum())
    prompts = [fork.prompt for fork in forks]
    seeds = [[seed + place] for place in range(len(prompts))]
    drawn = [one for [one] in InProcess(policy).generate(prompts, Sampling(NEW_TOKENS, 1.0), seeds=seeds)]
    replies = [Fork(prompt, (one.tokens,)) for prompt, one in zip(prompts, drawn, strict=True)]
    log_ratios = np.array(policy.score_all(replies))[:, 0] - np.array(base.score_all(replies))[:, 0]
    reward = load_function(f"{EXAMPLES / 'plain.py'}:plain")
    rewards = [reward(record.chat, policy.reply_text(one.tokens)) for record, one in zip(records, drawn, strict=True)]
    won_rate = wilson(won, len(forks))
    return {
        "implicit_accuracy": {"value": won_rate.value, "low": won_rate.low, "high": won_rate.high},
        "chosen_gain": float(gains[:, 0].mean()),
        "rejected_gain": float(gains[:, 1].mean()),
        "reward": mean(rewards),
        "kl": mean(log_ratios),
        "tokens": mean([len(one.tokens) for one in drawn]),
        "finished": float(np.mean([one.finished for one in drawn])),
    }


def mean(values: Any) -> dict[str, float]:
    array = np.asarray(values, dtype=float)
    return {"mean": float(array.mean()), "standard_error": float(array.std(ddof=1) / len(array) ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "methods", help="Where runs are kept.")
    parser.add_argument("--seed", type=int, default=0, help="Of the replies that are measured.")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods.json")
    given = parser.parse_args()
    runs = given.runs.resolve()
    base = open_local(PACKAGED)
    records = read_preferences(EXAMPLES / "more_pairs.jsonl")
    figures: dict[str, Any] = {"base": measured(base, base, records, given.seed)}
    for method in given.methods:
        figures[method] = trained(method, runs)
        if method == "reward":
            figures[method] |= json.loads((runs / method / "quality.json").read_text())
        else:
            policy = open_local(str(runs / method / "model"))
            figures[method] |= measured(policy, base, records, given.seed)
        show(method, figures[method])
    write_result(given.out, held_out_pairs=len(records), figures=figures)


def show(method: str, figures: dict[str, Any]) -> None:
    took = f"{method:11} {figures['step_seconds']:5.0f} s {figures['memory_gb']:.1f} GB"
    if "accuracy" in figures:
        print(f"{took}  accuracy {figures['accuracy']['value']:.0%}", flush=True)
        return
    print(
        f"{took}  implicit accuracy {figures['implicit_accuracy']['value']:.0%}, gain {figures['chosen_gain']:+.1f} and"
        f" {figures['rejected_gain']:+.1f}, reward {figures['reward']['mean']:.2f}, KL {figures['kl']['mean']:.1f},"
        f" {figures['tokens']['mean']:.0f} tokens",
        flush=True,
    )


if __name__ == "__main__":
    main()
