"""spiritlevel model: folders, merging and GGUF files from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from command_line import Run
from spiritlevel.models import open_local
from spiritlevel.train import LoraSettings, add_lora, save_trained
from tiny import save_model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base", dtype=torch.float32)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    student = add_lora(open_local(str(base)), LoraSettings(2, 4), seed=0)
    save_trained(student, tmp_path / "adapter", form="adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("words", [[], ["folder"]], ids=["left out", "said"])
def test_a_models_folder_is_printed(spiritlevel: Run, base: Path, words: list[str]) -> None:
    assert spiritlevel("model", *words, base)[:2] == (0, f"{base}\n")
    for flags in ([base, "--json"], ["--json", base]):
        told = json.loads(spiritlevel("model", *words, *flags).out)
        assert told == {"model": str(base), "folder": str(base), "digest": open_local(str(base)).digest}


def test_an_adapter_is_merged_and_exported(spiritlevel: Run, adapter: Path, tmp_path: Path) -> None:
    merged, file = tmp_path / "merged", tmp_path / "model.gguf"
    refused = spiritlevel("model", "export", adapter, "--gguf", file)
    assert refused.code == 3 and f"spiritlevel model merge {adapter}" in refused.err
    assert spiritlevel("model", "merge", adapter, "--out", merged).code == 0
    assert (merged / "model.safetensors").exists()
    assert spiritlevel("model", "export", merged, "--gguf", file, "--type", "q8_0").code == 0
    assert file.read_bytes()[:4] == b"GGUF"
    again = spiritlevel("model", "export", merged, "--gguf", file)
    assert again.code == 3 and f"{file}: exists already" in again.err
    again = spiritlevel("model", "merge", adapter, "--out", merged)
    assert again.code == 3 and f"{merged}: exists already" in again.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nowhere"], "nowhere: there is no such model"),
        (["export", "nowhere", "--gguf", "x"], "nowhere: there is no such model"),
        (["export", "nowhere", "--gguf", "x", "--type", "q2_k"], "'q2_k' is not one of"),
        (["export", "nowhere"], "Missing option '--gguf'"),
        (["merge", "nowhere", "--out", "x"], "nowhere: there is no such model"),
    ],
)
def test_a_mistake_is_told(
    spiritlevel: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = spiritlevel("model", *words)
    assert (outcome.code, outcome.out) == (3, "")
    assert problem in outcome.err and "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


TRAIN = ["train", "dpo", "--data", "nowhere", "--out", "x"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--lora", "qlora"], "'qlora' is not one of"),
        (["--checkpointing", "maybe"], "'maybe' is not one of"),
        (["--alpha", "0"], "'--alpha'"),
        (["--rank", "0", "--lora", "dora"], "no adapter"),
        (["--rank", "0", "--alpha", "8"], "no adapter"),
        (["--rank", "0", "--modules", "q_proj"], "no adapter"),
    ],
)
def test_options_of_adapters_are_checked(spiritlevel: Run, options: list[str], problem: str) -> None:
    outcome = spiritlevel(*TRAIN, *options)
    assert outcome.code == 3 and problem in outcome.err


def test_an_adapter_is_trained_as_told(spiritlevel: Run, base: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "hello", "chosen": "the one", "rejected": "the user"}] * 2
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", base, "--data", data, "--epochs", 1, "--adapter", "--rank", 2]
    usual = {"r": 2, "lora_alpha": 4, "use_rslora": False, "use_dora": False}
    for number, (more, expected) in enumerate(
        (
            ([], usual),
            (["--lora", "rslora"], usual | {"use_rslora": True, "lora_alpha": 8}),
            (["--alpha", 3, "--checkpointing", "on"], usual | {"lora_alpha": 3}),
            (["--lora", "dora", "--modules", "q_proj, v_proj"], usual | {"use_dora": True}),
        )
    ):
        out = tmp_path / f"out{number}"
        outcome = spiritlevel("train", "dpo", *options, "--out", out, *more)
        assert outcome.code == 0, outcome.err
        written = json.loads((out / "model" / "adapter_config.json").read_text())
        assert {name: written[name] for name in expected} == expected
    assert set(written["target_modules"]) == {"q_proj", "v_proj"}
    outcome = spiritlevel("train", "dpo", *options, "--out", tmp_path / "bad", "--modules", "q_prj")
    assert outcome.code == 3 and "'q_prj'" in outcome.err and "down_proj, gate_proj" in outcome.err
