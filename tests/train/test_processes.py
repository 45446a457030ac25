"""Several processes end with the weights of one: data parallel or sharded, on records or rollouts, killed or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("one_of_several.py")
PLAIN = ["dpo", "sft", "kto", "ppo", "grpo"]
SHARDED = [
    "dpo+shard", "sft+shard+off", "reward+shard", "kto+shard",
    "dpo+full+shard+off", "sft+full+shard+tied", "reward+full+shard",
]  # fmt: skip


def run(processes: int, folder: Path, *trainings: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), *trainings]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def farthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The greatest difference of two weights, relative to the greatest of its tensor where that exceeds 1."""
    assert one.keys() == two.keys()
    return max(float((two[name] - it).abs().max() / it.abs().max().clamp(min=1)) for name, it in one.items())


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything trained by one process, and by two."""
    folder = tmp_path_factory.mktemp("processes")
    for name, processes in (("one", 1), ("two", 2)):
        done = run(processes, folder / name, *PLAIN, *SHARDED)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("training", PLAIN + SHARDED)
def test_two_processes_end_where_one_does(training: str, ended: Path) -> None:
    """Eleven examples in batches of four, five prompts in batches of two: some shares are uneven, some empty."""
    one, two = ended / "one" / training, ended / "two" / training
    assert farthest(weights(one), weights(two)) <= 1e-5
    rows = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (one, two)]
    assert rows[0] == rows[1] > 0


@pytest.mark.parametrize("training", ["sft+full+shard+tied", "ppo"])
def test_killed_two_processes_end_with_the_same_weights(training: str, ended: Path, tmp_path: Path) -> None:
    assert run(2, tmp_path, f"{training}+kill").returncode != 0
    assert (tmp_path / training / "checkpoint.pt").exists() and not (
        tmp_path / training / "weights.safetensors"
    ).exists()
    assert run(2, tmp_path, training).returncode == 0
    assert farthest(weights(ended / "two" / training), weights(tmp_path / training)) == 0


def test_what_was_sharded_goes_on_in_one_process(ended: Path, tmp_path: Path) -> None:
    training = "dpo+shard"
    assert run(2, tmp_path, f"{training}+kill").returncode != 0
    assert run(1, tmp_path, training).returncode == 0
    assert farthest(weights(ended / "one" / training), weights(tmp_path / training)) <= 1e-5
