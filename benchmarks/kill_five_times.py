"""The accounting run, killed with SIGKILL at five moments and called again each time, against an undisturbed one.

Takes about twice a run's time (some twenty minutes on two cores), or once with `--straight FOLDER`, a finished run of
the same commit. `tests/align/test_resume.py` does the same to a tiny model.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spiritlevel.store import digest_folder, installed_versions, machine

HERE = Path(__file__).parent
ROOT = HERE.parent
ALIGN = [sys.executable, "-c", "from spiritlevel.cli.main import main; main()", "align"]
CHARTER = str(ROOT / "examples" / "accounting" / "charter.yaml")


def replies(out: Path) -> int:
    """How many answers and reference scores are kept."""
    return sum(1 for _ in (out / "store").rglob("*.json"))


def moments(out: Path) -> dict[str, Callable[[], bool]]:
    """When to kill: a name, and whether it is now."""
    at_pairs: list[int] = []

    def scoring() -> bool:
        if (out / "pairs.jsonl").exists() and not at_pairs:
            at_pairs.append(replies(out))
        return bool(at_pairs) and replies(out) >= at_pairs[0] + 200

    def training() -> bool:
        checkpoint = out / "train" / "checkpoint.pt"
        return checkpoint.exists() and time.time() - checkpoint.stat().st_mtime > 12  # some steps beyond it

    def measuring_after() -> bool:
        model = out / "model" / "config.json"
        return model.exists() and time.time() - model.stat().st_mtime > 6

    return {
        "while measuring before": lambda: replies(out) >= 40,
        "while making pairs": lambda: (out / "before.json").exists() and replies(out) >= 300,
        "while scoring references": scoring,
        "while training": training,
        "while measuring after": measuring_after,
    }


def killed_at(out: Path, now: Callable[[], bool]) -> bool:
    """Start the run and kill it when it is time; False if it ended before."""
    run = subprocess.Popen(
        [*ALIGN, CHARTER, "--out", str(out)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while run.poll() is None and not now():
        time.sleep(0.2)
    alive = run.poll() is None
    if alive:
        os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return alive


def finish(out: Path) -> int:
    return subprocess.run([*ALIGN, CHARTER, "--out", str(out)], stdout=subprocess.DEVNULL, check=False).returncode


def outcome(out: Path) -> dict[str, Any]:
    """What must not depend on interruptions: everything but times, places and commands."""
    report = json.loads((out / "report.json").read_text())
    kept = {name: report[name] for name in ("verdict", "sentence", "rows", "gates", "cases", "perplexity")}
    losses = [step["loss"] for step in report["training"]["history"]]
    return kept | {"losses": losses, "model": digest_folder(out / "model", suffixes=(".safetensors",))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--straight", type=Path, help="the folder of a finished run of this commit, seed 0")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "kill_five_times.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        straight, out = options.straight or Path(folder) / "straight", Path(folder) / "killed"
        print(f"undisturbed: exit code {finish(straight)}", flush=True)
        for name, now in moments(out).items():
            alive = killed_at(out, now)
            print(f"killed {name}" if alive else f"NOT killed {name}: it had ended", flush=True)
            if not alive:
                sys.exit("NOT CORRECT: a run ended before its moment came")
        print(f"called once more: exit code {finish(out)}")
        expected, found = outcome(straight), outcome(out)
    same = {name: found[name] == value for name, value in expected.items()}
    report = {
        "benchmark": "kill_five_times", "machine": machine(), "versions": installed_versions(), "same": same,
        "sentence": expected["sentence"],
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(same)
    if not all(same.values()):
        sys.exit("NOT CORRECT: the interrupted run ended differently")


if __name__ == "__main__":
    main()
