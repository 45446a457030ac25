"""DPO on HH-RLHF pairs: pairs a second and peak memory, ours against TRL with default and with tuned settings.

Same model, pairs, LoRA (r 16, all linear), batch of 8, computing in bfloat16. "Default": TRL as it comes (float32
weights under autocast), one epoch. "Tuned": checkpointing off and reference log-probabilities precomputed, three
epochs of a third of the pairs. "Tuned, bfloat16 weights": the base is held in bfloat16 as well, as ours always is. Of
"short prompts", pairs are of at most SHORT characters. Seconds include tokenising, reference log-probabilities and
training, on both sides. Correct if the references agree pair by pair, the first loss is ln 2, and the two loss curves
of a training in float32 from the same adapter on the same batches stay within 1e-3 of each other.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hh_rlhf import DEFAULT_DATA, read_pairs
from measured import RESULTS, run_peer, write_result
from spiritlevel.models import PACKAGED, model_folder

# Pairs are so long at most, prompt and both replies, in characters.
USUAL, SHORT = 2400, 400
CURVE_STEPS = 6


@dataclass(frozen=True)
class Setting:
    """weights: the type in which TRL holds the base's."""

    name: str
    epochs: int
    weights: str
    characters: int


SETTINGS = (
    Setting("default", 1, "float32", USUAL),
    Setting("tuned", 3, "float32", USUAL),
    Setting("tuned, bfloat16 weights", 3, "bfloat16", USUAL),
    Setting("default, short prompts", 1, "float32", SHORT),
    Setting("tuned, short prompts", 3, "float32", SHORT),
)


def run(python: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
    result = run_peer(python, script, job)
    return result | {"pairs_per_second": len(job["pairs"]) * job["epochs"] / result["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="the interpreter of an environment that has trl==1.16.0")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--pairs", type=int, default=48, help="How many pairs a setting trains on, epochs counted.")
    parser.add_argument("--out", type=Path, default=RESULTS / "dpo_vs_trl.json")
    options = parser.parse_args()
    base = {
        "model": str(model_folder(PACKAGED)), "batch_size": 8, "learning_rate": 1e-4, "beta": 0.1,
        "token_budget": 2048, "curve": False,
    }  # fmt: skip
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            pairs = read_pairs(options.data, options.pairs // setting.epochs, setting.characters)
            job = base | {
                "pairs": pairs, "epochs": setting.epochs, "folder": folder, "weights": setting.weights,
                "tuned": "tuned" in setting.name,
            }  # fmt: skip
            ours, trl = run(sys.executable, "ours_dpo.py", job), run(options.trl_python, "trl_dpo.py", job)
            figures[setting.name] = compared(job, ours, trl)
            show(setting.name, figures[setting.name])
        pairs = read_pairs(options.data, base["batch_size"], SHORT)
        job = base | {
            "pairs": pairs, "epochs": CURVE_STEPS, "folder": folder, "weights": "float32", "tuned": True,
            "curve": True, "adapter": str(Path(folder) / "adapter"),
        }  # fmt: skip
        curves = [run(sys.executable, "ours_dpo.py", job), run(options.trl_python, "trl_dpo.py", job)]
    curve = {"ours": curves[0]["losses"], "trl": curves[1]["losses"]}
    apart = max(abs(a - b) for a, b in zip(curve["ours"], curve["trl"], strict=True))
    print(f"loss curves in float32, {CURVE_STEPS} steps: at most {apart:.1e} apart")
    write_result(
        options.out, pairs=options.pairs, versions={"ours": ours["versions"], "trl": trl["versions"]}, figures=figures,
        loss_curves={**curve, "at_most_apart": apart},
    )  # fmt: skip
    references = [one["reference_difference"] for one in figures.values() if one["reference_difference"]]
    wrong = [name for name, f in figures.items() if abs(f["first_loss"]["ours"] - math.log(2)) > 0.02]
    if wrong or apart > 1e-3 or max(one["median"] for one in references) > 0.02:
        sys.exit("NOT CORRECT: the two do not compute the same thing")


def compared(job: dict[str, Any], ours: dict[str, Any], trl: dict[str, Any]) -> dict[str, Any]:
    told = ("pairs_per_second", "seconds", "train_seconds", "peak_gb")
    return {
        "pairs": len(job["pairs"]),
        "epochs": job["epochs"],
        **{
            name: {key: found[key] for key in told}
            | {
                "tokens_per_second": ours["tokens"] / found["train_seconds"],
                "wasted_tokens": 1 - ours["tokens"] / found["computed"],
            }
            for name, found in (("ours", ours), ("trl", trl))
        },
        "speed_ratio": ours["pairs_per_second"] / trl["pairs_per_second"],
        "memory_ratio": ours["peak_gb"] / trl["peak_gb"],
        "first_loss": {"ours": ours["losses"][0], "trl": trl["losses"][0], "expected": math.log(2)},
        "last_loss": {"ours": ours["losses"][-1], "trl": trl["losses"][-1]},
        "reference_difference": difference(ours["reference"], trl["reference"]),
    }


def difference(ours: list[float], trl: list[float] | None) -> dict[str, float] | None:
    """Relative differences of the reference log-probabilities, pair by pair (both computed in bfloat16)."""
    if trl is None:
        return None
    relative = sorted(abs(a - b) / abs(b) for a, b in zip(ours, trl, strict=True))
    return {"median": relative[len(relative) // 2], "largest": relative[-1]}


def show(name: str, figures: dict[str, Any]) -> None:
    print(f"{name}: {figures['speed_ratio']:.1f}x speed, {figures['memory_ratio']:.2f}x memory")
    for who in ("ours", "trl"):
        of = figures[who]
        print(
            f"  {who:4} {of['pairs_per_second']:.2f} pairs/s, {of['tokens_per_second']:.0f} tokens/s in training,"
            f" {of['wasted_tokens']:.0%} of tokens wasted, {of['peak_gb']:.1f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
