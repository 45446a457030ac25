"""What the benchmarks have in common: a run in a process of its own, and a result with its machine and versions."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spiritlevel.store import installed_versions, machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def run_peer(python: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
    """The figures that `peers/SCRIPT` prints for a job, in a process of its own, so that its peak memory is its own."""
    done = subprocess.run(
        [python, str(HERE / "peers" / script)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout[done.stdout.rindex('{"seconds"') :])
    return result


def write_result(out: Path, **found: Any) -> None:
    """found: what was measured; `versions` of a peer may be among it, else they are ours."""
    head = {
        "benchmark": out.stem,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": installed_versions(),
    }
    out.write_text(json.dumps(head | found, indent=2) + "\n")
