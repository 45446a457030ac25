"""What is written when training ends, read back by plain transformers and peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_disk import fill, small_disk
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import LocalModel, open_local
from spiritlevel.train import LoraSettings, add_lora, save_trained
from spiritlevel.train.adapters import fused_lora
from tiny import save_model

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 2]])
SETTINGS = LoraSettings(rank=4, alpha=12)


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def open_student(folder: Path, dtype: str) -> LocalModel:
    """With an adapter that has learnt something."""
    student = add_lora(open_local(str(folder), dtype=dtype), SETTINGS, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in student.model.parameters():
        if parameter.requires_grad:
            parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return student


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base", dtype=torch.float32)


def test_only_the_adapter_is_trained_and_it_starts_at_the_base(base: Path) -> None:
    before = logits(open_local(str(base), dtype="float32").model)
    student = add_lora(open_local(str(base), dtype="float32"), SETTINGS, seed=0)
    trained = [name for name, parameter in student.model.named_parameters() if parameter.requires_grad]
    # Seven linear modules in each of two layers, A and B of each; never the head.
    assert len(trained) == 2 * 7 * 2
    assert all("lora_" in name for name in trained)
    assert torch.equal(logits(student.model), before)


def test_the_seed_decides_the_start(base: Path) -> None:
    def start(seed: int) -> Tensor:
        model = add_lora(open_local(str(base), dtype="float32"), SETTINGS, seed=seed).model
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_modules_can_be_named(base: Path) -> None:
    settings = LoraSettings(rank=2, alpha=4, modules=("q_proj", "v_proj"))
    student = add_lora(open_local(str(base), dtype="float32"), settings, seed=0)
    trained = [name for name, parameter in student.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert all("q_proj" in name or "v_proj" in name for name in trained)


def test_an_adapter_is_read_by_peft_and_by_spirit_level(base: Path, tmp_path: Path) -> None:
    student, folder = open_student(base, "float32"), tmp_path / "adapter"
    expected = logits(student.model)
    save_trained(student, folder, form="adapter")
    assert not list(folder.glob("model*.safetensors")), "an adapter holds no base weights"

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    assert torch.equal(logits(plain), expected)
    ours = open_local(str(folder), dtype="float32")
    assert torch.equal(logits(ours.model), expected)
    with ours.model.disable_adapter():
        assert torch.equal(logits(ours.model), logits(open_local(str(base), dtype="float32").model))


def test_a_merged_model_is_read_by_transformers(base: Path, tmp_path: Path) -> None:
    student, folder = open_student(base, "float32"), tmp_path / "merged"
    expected = logits(student.model)
    save_trained(student, folder, form="merged")
    assert not (folder / "adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "hello the one"}]
    assert tokenizer.apply_chat_template(chat) == student.tokenizer.apply_chat_template(chat)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merging_adds_alpha_over_rank_b_a_and_rounds_once(base: Path, tmp_path: Path, dtype: str) -> None:
    student = open_student(base, dtype)
    before = dict(open_local(str(base), dtype=dtype).model.named_parameters())
    adapter = {
        name: parameter.detach().float()
        for name, parameter in student.model.named_parameters()
        if parameter.requires_grad
    }
    save_trained(student, tmp_path / "merged", form="merged")
    after = dict(open_local(str(tmp_path / "merged"), dtype=dtype).model.named_parameters())
    assert after.keys() == before.keys()
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert len(changed) == 2 * 7
    for name in changed:
        stem = "base_model.model." + name.removesuffix(".weight")
        product = adapter[f"{stem}.lora_B.default.weight"] @ adapter[f"{stem}.lora_A.default.weight"]
        exact = before[name].detach().float() + SETTINGS.alpha / SETTINGS.rank * product
        assert after[name].dtype == getattr(torch, dtype)
        if dtype == "float32":
            torch.testing.assert_close(after[name], exact)
        else:
            # Half a step of bfloat16, and what float32 leaves of a tie.
            error = (after[name].float() - exact).abs()
            assert bool((error <= 2**-8 * 1.001 * exact.abs()).all())


def test_fully_trained_weights_are_saved_whole(base: Path, tmp_path: Path) -> None:
    model = open_local(str(base), dtype="float32")
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.1)
    save_trained(model, tmp_path / "model", form="merged")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(logits(saved), logits(model.model))


def test_saving_replaces_what_was_there_and_leaves_nothing_beside_it(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "model"
    folder.mkdir(parents=True)
    (folder / "old.txt").write_text("old")
    save_trained(open_student(base, "float32"), folder, form="adapter")
    assert not (folder / "old.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_full_disk_is_told_and_what_was_there_stays(base: Path, tmp_path: Path, form: Any) -> None:
    student = open_student(base, "float32")
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "model"
        folder.mkdir()
        (folder / "old.txt").write_text("old")
        fill(disk, but=12_000)
        with pytest.raises(SpiritLevelError, match="disk is full") as told:
            save_trained(student, folder, form=form)
        assert told.value.where == str(folder)
        assert [path.name for path in folder.iterdir()] == ["old.txt"]
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "model"]


@pytest.mark.parametrize(("rank", "alpha"), [(0, 4), (-1, 4), (4, 0)])
def test_settings_out_of_range_are_refused(rank: int, alpha: int) -> None:
    with pytest.raises(SpiritLevelError, match=r"(rank|alpha) is (0|-1)\n.*at least 1"):
        LoraSettings(rank, alpha)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_fused_lora_is_lora(base: Path, dtype: str) -> None:
    student = open_student(base, dtype).model.train()
    weights = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}

    def found() -> tuple[Tensor, dict[str, Tensor]]:
        scores = student(input_ids=IDS).logits
        scores.double().log_softmax(-1)[..., 3].sum().backward()
        gradients = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
        student.zero_grad()
        return scores.detach(), gradients

    expected, expected_gradients = found()
    with fused_lora(student):
        assert sum("forward" in vars(layer) for layer in student.modules()) == 2 * 7
        scores, gradients = found()
        with student.disable_adapter():
            base_scores = student(input_ids=IDS).logits
    assert not any("forward" in vars(layer) for layer in student.modules())
    assert torch.equal(base_scores, open_local(str(base), dtype=dtype).model(input_ids=IDS).logits)
    assert gradients.keys() == expected_gradients.keys() == weights.keys()
    tolerance = 1e-9 if dtype == "float64" else 0.1
    assert float((scores - expected).norm()) <= tolerance * float(expected.norm())
    for name, gradient in expected_gradients.items():
        assert float((gradients[name] - gradient).norm()) <= tolerance * float(gradient.norm()), name


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({"lora_dropout": 0.1}, "float32"), ({"use_dora": True}, "float32"), ({}, "bfloat16")],
    ids=["dropout", "dora", "float32-on-bfloat16"],
)
def test_other_layers_keep_their_own_forward(base: Path, settings: dict[str, Any], dtype: str) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    student = get_peft_model(open_local(str(base), dtype=dtype).model, config)
    with fused_lora(student):
        assert not any("forward" in vars(layer) for layer in student.modules())
        assert student(input_ids=IDS).logits.isfinite().all()
