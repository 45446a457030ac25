"""Several processes end with the weights of one: data parallel or sharded, on records or rollouts, killed or not."""

from __future__ import annotations

import json
import os
import shutil
import socket
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


def run(processes: int, folder: Path, *trainings: str) -> None:
    """Train in so many processes; raises RuntimeError with what they said if one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    if processes > 1:
        shared |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(SCRIPT), str(folder), *trainings]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    children = [subprocess.Popen(command, env=shared | own, text=True, stderr=subprocess.PIPE) for own in ranks]
    told = [child.communicate()[1] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError("\n".join(text[-3000:] for text in told))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def farthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The greatest difference of two weights, relative to the greatest of its tensor where that exceeds 1."""
    assert one.keys() == two.keys()
    return max(float((two[name] - it).abs().max() / it.abs().max().clamp(min=1)) for name, it in one.items())


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything trained by one process, and by two."""
    folder = tmp_path_factory.mktemp("processes")
    for name, processes in (("one", 1), ("two", 2)):
        run(processes, folder / name, *PLAIN, *SHARDED)
    return folder


@pytest.mark.parametrize("training", PLAIN + SHARDED)
def test_two_processes_end_where_one_does(training: str, ended: Path) -> None:
    """Eleven examples in batches of four, five prompts in batches of two: some shares are uneven, some empty."""
    one, two = ended / "one" / training, ended / "two" / training
    assert farthest(weights(one), weights(two)) <= 1e-5
    for left, right in zip(metrics(one), metrics(two), strict=True):
        for name in ("loss", "grad_norm"):
            assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-5), name


KILLED = ["sft+full+shard+tied", "ppo"]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed in two processes, gone on with by one, and by two."""
    folder = tmp_path_factory.mktemp("killed")
    for training in KILLED:
        with pytest.raises(RuntimeError):
            run(2, folder / "left", f"{training}+kill")
    for name, processes in (("one", 1), ("two", 2)):
        shutil.copytree(folder / "left", folder / name)
        run(processes, folder / name, *KILLED)
    return folder


@pytest.mark.parametrize(("name", "most"), [("one", 1e-5), ("two", 0.0)])
@pytest.mark.parametrize("training", KILLED)
def test_what_was_killed_ends_as_if_undisturbed(
    training: str, name: str, most: float, ended: Path, resumed: Path
) -> None:
    before = metrics(resumed / "left" / training)
    assert before and not (resumed / "left" / training / "weights.safetensors").exists()
    assert metrics(resumed / name / training)[: len(before)] == before, "it went on, timings and all"
    assert farthest(weights(ended / name / training), weights(resumed / name / training)) <= most
