"""A reward model on HH-RLHF pairs: pairs a second and peak memory, ours against TRL, default and with tuned settings.

Both start from the same head and the same LoRA (r 16, all linear), see the same tokens in the same batches of 8, and
compute in bfloat16. "Default": TRL as it comes (float32 weights under autocast). "Tuned": checkpointing off. "Tuned,
bfloat16 weights": the base is held in bfloat16 as well, as ours always is. Seconds are of training; ours include
tokenising, TRL is given our tokens, since its own would end with a newline after the end of the reply. Wasted: of the
tokens that go through the model, those beyond each prompt and each reply once (negative where several pairs share the
start of their prompts). Correct if the first loss is the same up to bfloat16, and the curves of losses stay close.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

from hh_rlhf import DEFAULT_DATA, read_pairs
from measured import RESULTS, run_peer, write_result
from spiritlevel.data import Preference
from spiritlevel.models import LocalModel
from spiritlevel.train.batches import epoch_batches
from start import write_start

BATCH, SEED = 8, 0
# Name, and the type in which TRL holds the base's weights.
SETTINGS = (("default", "float32"), ("tuned", "float32"), ("tuned, bfloat16 weights", "bfloat16"))
BAR = 2.0
# Of the losses: the two round differently in bfloat16, and more so with every step away from the same start.
FIRST_LOSS, MEAN_LOSS = 0.02, 0.05


def rows(model: LocalModel, pairs: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """The pairs as tokens, in the order in which our loop takes them."""
    records = [Preference.model_validate(pair) for pair in pairs]
    order = chain.from_iterable(epoch_batches([record.source for record in records], BATCH, seed=SEED, epoch=0))
    found = []
    for record in (records[index] for index in order):
        prompt = model.prompt_tokens(record.chat)
        replies = (model.reply_tokens(record.chosen_text), model.reply_tokens(record.rejected_text))
        chosen, rejected = ([*prompt, *reply] for reply in replies)
        found.append({"chosen_ids": chosen, "rejected_ids": rejected, "prompt": len(prompt)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="the interpreter of an environment that has trl==1.16.0")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--pairs", type=int, default=64, help=f"a multiple of {BATCH}")
    parser.add_argument("--characters", type=int, default=2400)
    parser.add_argument("--settings", nargs="*", default=[name for name, _ in SETTINGS])
    parser.add_argument("--out", type=Path, default=RESULTS / "reward_vs_trl.json")
    given = parser.parse_args()
    pairs = read_pairs(given.data, given.pairs, given.characters)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        tokens = rows(write_start(Path(folder), seed=SEED), pairs)
        needed = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) - row["prompt"] for row in tokens)
        job = {
            "folder": folder, "pairs": pairs, "rows": tokens, "batch_size": BATCH, "learning_rate": 1e-4,
            "token_budget": 2048, "seed": SEED,
        }  # fmt: skip
        ours = one_run(sys.executable, "ours_reward.py", job, needed)
        for name, weights in SETTINGS:
            if name in given.settings:
                trl_job = job | {"tuned": name != "default", "weights": weights}
                trl = one_run(given.trl_python, "trl_reward.py", trl_job, needed)
                figures[name] = compared(ours, trl)
                show(name, figures[name])
    versions = {"ours": ours["versions"], "trl": trl["versions"]}
    write_result(given.out, pairs=given.pairs, bar=BAR, tokens_needed=needed, versions=versions, figures=figures)
    for figure in figures.values():
        if figure["loss_difference"]["first"] > FIRST_LOSS or figure["loss_difference"]["mean"] > MEAN_LOSS:
            sys.exit("NOT CORRECT: the two do not compute the same thing")
    if slow := [name for name, figure in figures.items() if figure["speed_ratio"] < BAR]:
        sys.exit(f"NOT REACHED: {BAR}x against {', '.join(slow)}")


def one_run(python: str, script: str, job: dict[str, Any], needed: int) -> dict[str, Any]:
    found = run_peer(python, script, job)
    rate = {"pairs_per_second": len(job["pairs"]) / found["seconds"], "wasted": 1 - needed / found["tokens"]}
    return found | rate


def compared(ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, Any]:
    shown = ("pairs_per_second", "seconds", "peak_gb", "tokens", "wasted", "losses")
    differences = [abs(a - b) for a, b in zip(ours["losses"], trl["losses"], strict=True)]
    return {
        "ours": {name: ours[name] for name in shown},
        "trl": {name: trl[name] for name in shown},
        "speed_ratio": ours["pairs_per_second"] / trl["pairs_per_second"],
        "memory_ratio": ours["peak_gb"] / trl["peak_gb"],
        "loss_difference": {
            "first": differences[0],
            "mean": sum(differences) / len(differences),
            "largest": max(differences),
        },
    }


def show(name: str, figure: dict[str, Any]) -> None:
    ours, trl = figure["ours"], figure["trl"]
    print(
        f"{name:24} ours {ours['pairs_per_second']:.2f} pairs/s {ours['peak_gb']:.1f} GB {ours['wasted']:.0%} wasted |"
        f" TRL {trl['pairs_per_second']:.2f} pairs/s {trl['peak_gb']:.1f} GB {trl['wasted']:.0%} wasted |"
        f" {figure['speed_ratio']:.1f}x speed, {figure['memory_ratio']:.2f}x memory | losses differ by"
        f" {figure['loss_difference']['first']:.4f} at first, {figure['loss_difference']['mean']:.4f} in the mean",
        flush=True,
    )


if __name__ == "__main__":
    main()
