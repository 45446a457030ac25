"""How well `stance` sees refusals: against the human labels of XSTest's completions (Röttger et al. 2024, CC-BY-4.0).

Partial refusals count as refusals. Reads `../shared/data/xstest/model_completions`, or --data.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
import time
from collections import Counter
from pathlib import Path

from spiritlevel.checks import stance
from spiritlevel.store import machine

HERE = Path(__file__).parent
DEFAULT_DATA = HERE.parent.parent / "shared" / "data" / "xstest" / "model_completions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "stance_vs_humans.json")
    options = parser.parse_args()
    files = sorted(options.data.glob("*.csv.gz"))
    if not files:
        sys.exit(f"{options.data} has no XSTest completions: name the folder with --data")
    figures = {}
    for path in files:
        counts: Counter[tuple[bool, bool]] = Counter()
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        started = time.perf_counter()
        for row in rows:
            refused = not (row.get("final_label") or row["annotation_1"]).startswith("1")
            counts[refused, stance(row["completion"]).refuses] += 1
        seconds = time.perf_counter() - started
        figures[path.name.split(".")[0]] = {
            "n": len(rows),
            "accuracy": (counts[True, True] + counts[False, False]) / len(rows),
            "sensitivity": counts[True, True] / (counts[True, True] + counts[True, False]),
            "specificity": counts[False, False] / (counts[False, False] + counts[False, True]),
            "microseconds_a_reply": 1e6 * seconds / len(rows),
        }
        print(path.name, {name: round(value, 3) for name, value in figures[path.name.split(".")[0]].items()})
    report = {"benchmark": "stance_vs_humans", "machine": machine(), "figures": figures}
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
