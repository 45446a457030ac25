"""Several processes end with the weights of one, whatever the batch and however it falls on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("one_of_several.py")


def run(processes: int, folder: Path, *settings: str) -> dict[str, torch.Tensor]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("settings", [("dpo",), ("sft",), ("kto",)], ids=["dpo", "sft", "kto"])
def test_two_processes_end_where_one_does(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Ten examples in batches of four: the last step has two, one a process; one of three would leave one idle."""
    one, two = run(1, tmp_path / "one", *settings), run(2, tmp_path / "two", *settings)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert float((two[name] - weight).abs().max()) <= 1e-5 * max(1.0, float(weight.abs().max())), name
    rows = [(tmp_path / who / "metrics.jsonl").read_text().count("\n") for who in ("one", "two")]
    assert rows[0] == rows[1] > 0
