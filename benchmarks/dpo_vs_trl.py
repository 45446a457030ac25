"""DPO on HH-RLHF pairs: pairs a second and peak memory, ours against TRL with default and with tuned settings.

Same model, pairs, LoRA (r 16, all linear), batch of 8, computing in bfloat16. "Default": TRL as it comes (float32
weights under autocast), one epoch. "Tuned": checkpointing off and reference log-probabilities precomputed, three
epochs. "Tuned, bfloat16 weights": the base is held in bfloat16 as well, as ours always is. Seconds include tokenising,
reference log-probabilities and training, on both sides. Correct if the references agree pair by pair and the first
loss is ln 2.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from hh_rlhf import DEFAULT_DATA, read_pairs
from measured import RESULTS, run_peer, write_result
from spiritlevel.models import PACKAGED, model_folder

# Name, epochs, and the type in which TRL holds the base's weights.
SETTINGS = (("default", 1, "float32"), ("tuned", 3, "float32"), ("tuned, bfloat16 weights", 3, "bfloat16"))


def run(python: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
    result = run_peer(python, script, job)
    return result | {"pairs_per_second": len(job["pairs"]) * job["epochs"] / result["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="the interpreter of an environment that has trl==1.16.0")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--characters", type=int, default=2400)
    parser.add_argument("--out", type=Path, default=RESULTS / "dpo_vs_trl.json")
    options = parser.parse_args()
    base = {
        "model": str(model_folder(PACKAGED)), "pairs": read_pairs(options.data, options.pairs, options.characters),
        "batch_size": 8, "learning_rate": 1e-4, "beta": 0.1, "token_budget": 2048,
    }  # fmt: skip
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, epochs, weights in SETTINGS:
            job = base | {"epochs": epochs, "folder": folder, "tuned": name != "default", "weights": weights}
            ours, trl = run(sys.executable, "ours_dpo.py", job), run(options.trl_python, "trl_dpo.py", job)
            figures[name] = {
                "epochs": epochs,
                "ours": {key: ours[key] for key in ("pairs_per_second", "seconds", "train_seconds", "peak_gb")},
                "trl": {key: trl[key] for key in ("pairs_per_second", "seconds", "train_seconds", "peak_gb")},
                "speed_ratio": ours["pairs_per_second"] / trl["pairs_per_second"],
                "memory_ratio": ours["peak_gb"] / trl["peak_gb"],
                "first_loss": {"ours": ours["losses"][0], "trl": trl["losses"][0], "expected": math.log(2)},
                "last_loss": {"ours": ours["losses"][-1], "trl": trl["losses"][-1]},
                "reference_difference": difference(ours["reference"], trl["reference"]),
            }
            show(name, figures[name])
    versions = {"ours": ours["versions"], "trl": trl["versions"]}
    write_result(options.out, pairs=options.pairs, versions=versions, figures=figures)
    tuned = figures["tuned"]
    wrong = [name for name, f in figures.items() if abs(f["first_loss"]["ours"] - math.log(2)) > 0.02]
    if wrong or tuned["reference_difference"] is None or tuned["reference_difference"]["median"] > 0.02:
        sys.exit("NOT CORRECT: the two do not compute the same thing")


def difference(ours: list[float], trl: list[float] | None) -> dict[str, float] | None:
    """Relative differences of the reference log-probabilities, pair by pair (both computed in bfloat16)."""
    if trl is None:
        return None
    relative = sorted(abs(a - b) / abs(b) for a, b in zip(ours, trl, strict=True))
    return {"median": relative[len(relative) // 2], "largest": relative[-1]}


def show(name: str, figures: dict[str, Any]) -> None:
    ours, trl = figures["ours"], figures["trl"]
    print(
        f"{name:24s} ours {ours['pairs_per_second']:.2f} pairs/s {ours['peak_gb']:.1f} GB | "
        f"TRL {trl['pairs_per_second']:.2f} pairs/s {trl['peak_gb']:.1f} GB | "
        f"{figures['speed_ratio']:.1f}x speed, {figures['memory_ratio']:.2f}x memory",
        flush=True,
    )


if __name__ == "__main__":
    main()
