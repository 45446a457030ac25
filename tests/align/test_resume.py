"""The whole loop as a user runs it, on a tiny random model: killed at five moments, it ends with the same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from spiritlevel.store import digest_folder
from spiritlevel.train.doctor import read_run
from tiny import save_model

TEMPLATE = Path("src/spiritlevel/charter/templates/accounting")
COMMAND = [sys.executable, "-c", "from spiritlevel.cli.main import main; main()"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A small charter, and a tiny model saved as a directory."""
    root = tmp_path_factory.mktemp("world")
    charter = root / "charter"
    (charter / "probes").mkdir(parents=True)
    document = yaml.safe_load((TEMPLATE / "charter.yaml").read_text(encoding="utf-8"))
    document["probes"] = {"train": ["probes/train.jsonl"], "held_out": ["probes/held_out.jsonl"]}
    (charter / "charter.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    for half, count in (("train", 8), ("held_out", 6)):
        rows = [json.loads(line) for line in (TEMPLATE / "probes" / f"{half}.jsonl").read_text().splitlines()]
        helped = [row for row in rows if row["expect"] == "help"][:count]
        declined = [row for row in rows if row["expect"] != "help"][:count]
        lines = [json.dumps(row) for row in helped + declined]
        (charter / "probes" / f"{half}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    save_model(root / "tiny")
    return root


def arguments(world: Path, out: Path) -> list[str]:
    options = ["--model", str(world / "tiny"), "--out", str(out), "--max-new-tokens", "8", "--epochs", "2"]
    return [*COMMAND, "align", str(world / "charter"), *options, "--save-seconds", "0"]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def outcome(out: Path) -> dict[str, object]:
    """What must not depend on interruptions: everything but times, places and commands."""
    report = json.loads((out / "report.json").read_text())
    kept = {name: report[name] for name in ("verdict", "sentence", "rows", "gates", "cases", "perplexity")}
    losses = [step["loss"] for step in report["training"]["history"]]
    return kept | {"losses": losses, "model": digest_folder(out / "model", suffixes=(".safetensors",))}


@pytest.fixture(scope="module")
def straight(world: Path) -> dict[str, object]:
    out = world / "straight"
    done = subprocess.run(arguments(world, out), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1, 2), done.stderr
    assert (out / "report.html").exists(), done.stderr
    return outcome(out)


def in_the_store(count: int) -> Callable[[Path], bool]:
    return lambda out: len(list((out / "store").rglob("*.json"))) >= count


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "while measuring before": in_the_store(1),
    "while making pairs": in_the_store(16),
    "after the pairs": lambda out: (out / "pairs.jsonl").exists(),
    "while training": lambda out: (out / "train" / "checkpoint.pt").exists(),
    "after training": lambda out: (out / "model").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_called_again_it_ends_the_same(world: Path, straight: dict[str, object], moment: str):
    out = world / moment.replace(" ", "-")
    process = subprocess.Popen(
        arguments(world, out), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not MOMENTS[moment](out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "report.json").exists(), "killed too late to prove anything"
    again = subprocess.run(arguments(world, out), env=environment(), capture_output=True, text=True, check=False)
    assert (out / "report.html").exists(), again.stderr
    assert outcome(out) == straight


def test_the_doctor_reads_the_folder_of_a_run(world: Path, straight: dict[str, object]):
    """With the settings that the run recorded; so few steps of a random model are too short to judge."""
    run = read_run(world / "straight")
    assert run.settings["max_grad_norm"] == 1.0
    assert run.planned_steps == run.last_step
    assert list(run["loss"].values) == straight["losses"]


def test_interrupting_says_what_is_kept(world: Path):
    out = world / "interrupted"
    process = subprocess.Popen(arguments(world, out), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not in_the_store(1)(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "kept" in said
    assert "Traceback" not in said
