"""What is written when training ends, read back by plain transformers and peft."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_disk import fill, small_disk
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, LocalModel, RewardModel, open_local, open_reward_model
from spiritlevel.train import (
    DPO,
    Example,
    LoraSettings,
    LoraVariant,
    SharedReward,
    TrainConfig,
    add_lora,
    merge_adapter,
    open_base,
    save_trained,
    train,
)
from spiritlevel.train.adapters import fused_lora
from tiny import build_model, save_model

IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 2]])
SETTINGS = LoraSettings(rank=4, alpha=12)
VARIANTS: tuple[LoraVariant, ...] = ("lora", "rslora", "dora")
SCALES = {"lora": 12 / 4, "rslora": 12 / 2}


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def open_student(folder: Path, dtype: str, variant: LoraVariant = "lora") -> LocalModel:
    """With an adapter that has learnt something."""
    student = add_lora(open_local(str(folder), dtype=dtype), replace(SETTINGS, variant=variant), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in student.model.parameters():
        if parameter.requires_grad:
            draw = 0.1 * torch.randn(parameter.shape, generator=generator)
            # The vectors are the lengths of DoRA's rows.
            parameter.data = (parameter.data * (1 + draw) if parameter.ndim == 1 else draw).to(parameter.dtype)
    return student


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base", dtype=torch.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_adapter_is_trained_and_it_starts_at_the_base(base: Path, variant: LoraVariant, dtype: str) -> None:
    before = logits(open_local(str(base), dtype=dtype).model)
    student = add_lora(open_local(str(base), dtype=dtype), replace(SETTINGS, variant=variant), seed=0)
    trained = [name for name, parameter in student.model.named_parameters() if parameter.requires_grad]
    # Seven linear modules in each of two layers, A and B of each (and DoRA's lengths); never the head.
    assert len(trained) == 2 * 7 * (3 if variant == "dora" else 2)
    assert all("lora_" in name for name in trained)
    if variant == "dora":
        torch.testing.assert_close(logits(student.model), before)
    else:
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


@pytest.mark.parametrize("wanted", ["k_prj", "lm_head", "embed_tokens", "proj", ""])
def test_an_unknown_module_is_told_with_those_there_are(base: Path, wanted: str) -> None:
    with pytest.raises(SpiritLevelError, match=f"no linear module '{wanted}'") as told:
        add_lora(open_local(str(base)), LoraSettings(modules=("q_proj", wanted)), seed=0)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in told.value.remedy


def test_one_layers_module_can_be_named(base: Path) -> None:
    student = add_lora(open_local(str(base)), LoraSettings(modules=("layers.1.mlp.up_proj",)), seed=0)
    trained = [name for name, parameter in student.model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2
    assert all("layers.1.mlp.up_proj" in name for name in trained)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_is_read_by_peft_and_by_spirit_level(base: Path, tmp_path: Path, variant: LoraVariant) -> None:
    student, folder = open_student(base, "float32", variant), tmp_path / "adapter"
    expected = logits(student.model)
    save_trained(student, folder, form="adapter")
    assert not list(folder.glob("model*.safetensors")), "an adapter holds no base weights"

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    assert torch.equal(logits(plain), expected)
    ours = open_local(str(folder), dtype="float32")
    assert torch.equal(logits(ours.model), expected)
    with ours.model.disable_adapter():
        assert torch.equal(logits(ours.model), logits(open_local(str(base), dtype="float32").model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_model_is_read_by_transformers(base: Path, tmp_path: Path, variant: LoraVariant) -> None:
    student, folder = open_student(base, "float32", variant), tmp_path / "merged"
    expected = logits(student.model)
    assert not torch.allclose(expected, logits(open_local(str(base), dtype="float32").model), atol=0.1)
    save_trained(student, folder, form="merged")
    assert not (folder / "adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "hello the one"}]
    assert tokenizer.apply_chat_template(chat) == student.tokenizer.apply_chat_template(chat)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", SCALES)
def test_merging_adds_the_scaled_product_and_rounds_once(
    base: Path, tmp_path: Path, variant: LoraVariant, dtype: str
) -> None:
    student = open_student(base, dtype, variant)
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
        exact = before[name].detach().float() + SCALES[variant] * product
        assert after[name].dtype == getattr(torch, dtype)
        if dtype == "float32":
            torch.testing.assert_close(after[name], exact)
        else:
            # Half a step of bfloat16, and what float32 leaves of a tie.
            error = (after[name].float() - exact).abs()
            assert bool((error <= 2**-8 * 1.001 * exact.abs()).all())


def test_dora_has_rows_of_the_trained_lengths(base: Path, tmp_path: Path) -> None:
    student = open_student(base, "float32", "dora")
    lengths = {
        name.removesuffix(".lora_magnitude_vector.default.weight").removeprefix("base_model.model."): weight.detach()
        for name, weight in student.model.named_parameters()
        if "magnitude" in name
    }
    save_trained(student, tmp_path / "merged", form="merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert len(lengths) == 2 * 7
    for name, length in lengths.items():
        torch.testing.assert_close(merged.get_submodule(name).weight.norm(dim=1), length)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_saved_adapter_is_merged_in_its_bases_precision(tmp_path: Path, variant: LoraVariant, stored: str) -> None:
    base = save_model(tmp_path / "base", dtype=getattr(torch, stored))
    student = open_student(base, stored, variant)
    save_trained(student, tmp_path / "adapter", form="adapter")
    save_trained(student, tmp_path / "expected", form="merged")
    merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged")
    names = sorted(path.name for path in (tmp_path / "expected").iterdir())
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == names
    weights = [load_file(tmp_path / which / "model.safetensors") for which in ("merged", "expected")]
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())
    assert {weight.dtype for weight in weights[0].values()} == {getattr(torch, stored)}


def test_what_can_not_be_merged_is_told(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SpiritLevelError, match="is a whole model: there is nothing to merge"):
        merge_adapter(str(base), tmp_path / "merged")
    with pytest.raises(SpiritLevelError, match="exists already"):
        merge_adapter(str(base), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


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


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(SpiritLevelError, match=r"variant is qlora\n.*lora, rslora or dora"):
        LoraSettings(variant="qlora")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [{"variant": "rslora"}, {"variant": "dora"}, {"alpha": 13}, {"modules": ("v_proj",)}],
    ids=["rslora", "dora", "alpha", "modules"],
)
def test_an_adapter_of_other_settings_does_not_go_on_from_a_checkpoint(other: dict[str, Any], tmp_path: Path) -> None:
    examples = [Example(Fork((1, 2, 3), ((4, 5), (6, 7))), (-9.0, -9.0)) for _ in range(4)]
    config = TrainConfig(learning_rate=1e-2, epochs=1, batch_size=2)
    usual = LoraSettings(rank=4, alpha=12, modules=("k_proj",))  # as large as v_proj

    def run(settings: LoraSettings) -> list[float]:
        steps: list[float] = []
        model = add_lora(build_model(), settings, seed=0)
        train(model, DPO(beta=0.1), examples, config, tmp_path, on_step=lambda metrics: steps.append(metrics["step"]))
        return steps

    assert run(usual) == [1, 2]
    assert run(usual) == []
    assert run(replace(usual, **other)) == [1, 2]


@pytest.mark.parametrize("variant", SCALES)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_fused_lora_is_lora(base: Path, dtype: str, variant: LoraVariant) -> None:
    student = open_student(base, dtype, variant).model.train()
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


FORKS = [Fork((5, 6, 7), ((8, 9, 3), (10, 3))), Fork((5, 6), ((14, 15, 16, 3), (18, 3)))]


def test_an_adapter_of_the_same_base_may_leave_out_layers_that_are_fused(base: Path, tmp_path: Path) -> None:
    settings = LoraSettings(rank=2, alpha=4, modules=("q_proj",))
    trained = add_lora(RewardModel.on(open_local(str(base), dtype="float32"), seed=0), settings, seed=0)
    for name, parameter in trained.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    expected = trained.rewards(FORKS)
    save_trained(trained, tmp_path / "reward", form="adapter")

    policy = open_student(base, "float32")
    shared = SharedReward.beside(policy, base, tmp_path / "reward")
    with fused_lora(policy.model):
        assert sum("forward" in vars(layer) for layer in policy.model.modules()) == 2 * 7
        for found, wanted in zip(shared.rewards(FORKS), expected, strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)


def test_a_policys_adapter_is_no_reward(base: Path, tmp_path: Path) -> None:
    save_trained(open_student(base, "float32"), tmp_path / "adapter", form="adapter")
    with pytest.raises(SpiritLevelError, match="adapter of task type CAUSAL_LM, where SEQ_CLS is needed") as told:
        SharedReward.beside(open_student(base, "float32"), base, tmp_path / "adapter")
    assert told.value.where == str(tmp_path / "adapter")
    with pytest.raises(SpiritLevelError, match="adapter of task type CAUSAL_LM, where SEQ_CLS is needed"):
        open_reward_model(tmp_path / "adapter")


def test_a_reward_adapter_is_no_language_model_and_is_merged_with_its_head_and_scale(
    base: Path, tmp_path: Path
) -> None:
    trained = add_lora(RewardModel.on(open_local(str(base), dtype="float32"), seed=0), SETTINGS, seed=0)
    trained.normalise([reward for rewards in trained.rewards(FORKS) for reward in rewards])
    save_trained(trained, tmp_path / "adapter", form="adapter")
    with pytest.raises(SpiritLevelError, match="adapter of task type SEQ_CLS, where CAUSAL_LM is needed"):
        open_local(str(tmp_path / "adapter"))
    merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged")
    merged = open_reward_model(tmp_path / "merged", dtype="float32")
    assert merged.scale == trained.scale
    for found, wanted in zip(merged.rewards(FORKS), trained.rewards(FORKS), strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_an_adapter_of_a_model_named_from_here_is_read_from_elsewhere(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    opened = open_local(base.name, dtype="float32")
    student = add_lora(RewardModel.on(opened, seed=0) if kind == "reward" else opened, SETTINGS, seed=0)
    save_trained(student, tmp_path / "adapter", form="adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    adapter = tmp_path / "adapter"
    read = open_reward_model(adapter) if kind == "reward" else open_local(str(adapter))
    assert read.base == base


def test_training_does_not_start_from_an_adapter(base: Path, tmp_path: Path) -> None:
    save_trained(open_student(base, "float32"), tmp_path / "adapter", form="adapter")
    adapter = str(tmp_path / "adapter")
    for start in (open_base, lambda spec: add_lora(open_local(spec), SETTINGS, seed=0)):
        with pytest.raises(SpiritLevelError, match="is an adapter, and training starts from a whole model") as told:
            start(adapter)
        assert f"spiritlevel model merge {adapter}" in told.value.remedy
    assert open_base(str(base)).folder == base
