"""Run records: what a stage read and wrote, by digest, with the command and versions that did it.

A record is also how a stage knows that its work is already done: same inputs, outputs still whole.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spiritlevel.store.digest import digest_file, digest_folder, digest_json
from spiritlevel.store.files import read_json, write_json

_PACKAGES = ("spiritlevel", "torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True)
class RunRecord:
    """One execution of one stage. `inputs` are values or digests; `outputs` map file names to digests."""

    stage: str
    inputs: dict[str, Any]
    outputs: dict[str, str]
    command: str
    started: str
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the digest of what went in and came out."""
        return digest_json([self.stage, self.inputs, self.outputs])[:16]


def run_stage(
    folder: Path, stage: str, inputs: Mapping[str, Any], outputs: tuple[str, ...], work: Callable[[], None]
) -> tuple[RunRecord, bool]:
    """Do `work` unless the record of an earlier run has the same inputs and its outputs are unchanged.

    Returns the record, and whether the work was done now. `outputs` are file or folder names in `folder`.
    """
    path = folder / "runs" / f"{stage}.json"
    earlier = _load(path)
    if earlier is not None and earlier.inputs == dict(inputs) and earlier.outputs == _digests(folder, outputs):
        return earlier, False
    started, clock = datetime.now(UTC), time.monotonic()
    work()
    record = RunRecord(
        stage,
        dict(inputs),
        _digests(folder, outputs),
        command_line(),
        started.isoformat(timespec="seconds"),
        round(time.monotonic() - clock, 2),
        installed_versions(),
        machine(),
    )
    write_json(path, asdict(record) | {"id": record.id})
    return record, True


def command_line() -> str:
    """The command that runs now, as a shell would take it again."""
    return shlex.join(sys.argv)


def installed_versions() -> dict[str, str]:
    """The versions of the packages that decide a result, and of Python."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def machine() -> dict[str, str]:
    """Processor and operating system."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return {"processor": name, "system": platform.platform(terse=True)}


def _digests(folder: Path, outputs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in outputs:
        path = folder / name
        if path.is_dir():
            found[name] = digest_folder(path)
        elif path.exists():
            found[name] = digest_file(path)
    return found


def _load(path: Path) -> RunRecord | None:
    if not path.exists():
        return None
    fields = read_json(path)
    fields.pop("id", None)
    try:
        return RunRecord(**fields)
    except TypeError:
        return None
