"""The memory of a step is what it takes, nothing is changed by estimating it, and checkpointing changes no result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, LocalModel, score_batch
from spiritlevel.train import DPO, Example, LoraSettings, TrainConfig, add_lora, memory, train
from spiritlevel.train.adapters import fused_lora
from spiritlevel.train.memory import (
    estimate_step,
    free_memory,
    gradient_checkpointing,
    heaviest_micro_batch,
    needs_checkpointing,
)
from tiny import build_llama, build_qwen2, build_tokenizer

BUILD: dict[str, Callable[..., Any]] = {"llama": build_llama, "qwen2": build_qwen2}
PREFER = DPO(beta=0.1, nll_weight=0.5)
CONFIG = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=3, token_budget=60)


def draw_forks(count: int, prompt: int, reply: int) -> list[Fork]:
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(200, (length,), generator=generator).tolist())

    return [Fork(tokens(prompt + index), (tokens(reply), tokens(reply + index))) for index in range(count)]


def student(kind: str, *, name: str = "llama", dtype: torch.dtype = torch.float64, **changes: Any) -> LocalModel:
    model = LocalModel(BUILD[name](dtype=dtype, vocab_size=288, **changes), build_tokenizer(), name="tiny")
    return model if kind == "full" else add_lora(model, LoraSettings(4, 8, variant=kind), seed=0)  # type: ignore[arg-type]


def allocator_peak(work: Callable[[], object]) -> int:
    """The most bytes that torch's allocator held at once for `work`, by its own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


# --- the estimate -------------------------------------------------------------------------------------

# Forks, tokens of their prompts and replies.
SHORT, LONG, MANY = (6, 20, 10), (2, 200, 60), (12, 40, 20)
STEPS = [
    ("lora", "float32", SHORT, False),
    ("lora", "bfloat16", SHORT, False),  # plain attention
    ("lora", "bfloat16", LONG, False),  # fused attention
    ("lora", "bfloat16", MANY, True),
    ("dora", "bfloat16", MANY, False),
    ("full", "float32", LONG, True),
    ("full", "bfloat16", MANY, False),
]


@pytest.mark.parametrize(("kind", "dtype", "layout", "checkpointed"), STEPS)
@pytest.mark.parametrize("name", BUILD)
def test_the_estimate_is_what_the_allocator_gives(
    name: str, kind: str, dtype: str, layout: tuple[int, int, int], checkpointed: bool
) -> None:
    model = student(kind, name=name, dtype=getattr(torch, dtype), num_hidden_layers=4)
    forks = draw_forks(*layout)

    def step() -> None:
        score_batch(model.model, forks, pad_token=model.pad_token).logprobs.sum().backward()

    with fused_lora(model.model), gradient_checkpointing(model, on=checkpointed):
        estimate = estimate_step(model, forks)
        for weight in model.model.parameters():
            if weight.requires_grad:  # the estimate has gradients apart
                weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
        step()  # what is made once and kept
        measured = allocator_peak(step)
    assert estimate.activations == pytest.approx(measured, rel=0.02)


def test_estimating_computes_and_changes_nothing() -> None:
    model = student("lora")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    state = torch.get_rng_state()
    first = estimate_step(model, draw_forks(3, 30, 10))
    assert all(weight.grad is None for weight in model.model.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in model.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert estimate_step(model, draw_forks(3, 30, 10)) == first
    score_batch(model.model, draw_forks(3, 30, 10), pad_token=0).logprobs.sum().backward()
    assert estimate_step(model, draw_forks(3, 60, 20)).activations > first.activations


@pytest.mark.parametrize(("dtype", "bytes_a_weight"), [("bfloat16", 4), ("float32", 4), ("float64", 8)])
def test_the_optimisers_share_is_counted_in_its_masters(dtype: str, bytes_a_weight: int) -> None:
    model = student("lora", dtype=getattr(torch, dtype))
    trained = [weight for weight in model.model.parameters() if weight.requires_grad]
    estimate = estimate_step(model, draw_forks(1, 4, 4))
    count = sum(weight.numel() for weight in trained)
    assert estimate.gradients == sum(weight.nbytes for weight in trained)
    assert estimate.moments == 2 * bytes_a_weight * count
    assert estimate.stepping == (4 * count if dtype == "bfloat16" else 0)
    least = replace(estimate, activations=0)
    assert least.tensors == estimate.gradients + estimate.moments + estimate.stepping < least.total


def test_the_heaviest_micro_batch_has_most_tokens() -> None:
    short, middle, long = (draw_forks(1, length, 4)[0] for length in (5, 20, 50))
    assert heaviest_micro_batch([[short, short], [middle, long, short]], 40) == [long]
    assert heaviest_micro_batch([[short] * 8, [long]], 1000) == [short] * 8
    assert heaviest_micro_batch([], 40) == []


# --- the decision -------------------------------------------------------------------------------------


def examples(count: int = 6) -> list[Example]:
    return [Example(fork, (-20.0, -21.0)) for fork in draw_forks(count, 10, 6)]


def trained(kind: str, name: str, setting: Any, folder: Path) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    model = student(kind, name=name)
    history = train(model, PREFER, examples(), replace(CONFIG, checkpointing=setting), folder)
    assert not model.model.is_activation_checkpointing
    assert not model.model.get_input_embeddings()(torch.tensor([1])).requires_grad or kind == "full"
    return history, {key: value.detach() for key, value in model.model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "full"])
@pytest.mark.parametrize("name", BUILD)
def test_a_training_is_the_same_with_and_without(kind: str, name: str, tmp_path: Path) -> None:
    on, off = (trained(kind, name, setting, tmp_path / setting) for setting in ("on", "off"))
    for left, right in zip(on[0], off[0], strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-9)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-7)
    for key, weight in on[1].items():
        torch.testing.assert_close(weight, off[1][key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("share", "checkpointed"), [(1.1, False), (0.9, True)])
def test_auto_checkpoints_where_the_estimate_does_not_fit(
    share: float, checkpointed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, forks = student("lora"), draw_forks(3, 30, 10)
    needed = estimate_step(model, forks).total
    monkeypatch.setattr(memory, "free_memory", lambda device: int(needed * share / memory.SHARE))
    with caplog.at_level(logging.INFO, "spiritlevel"):
        assert needs_checkpointing(model, "auto", [forks], 1000) == checkpointed
    (told,) = caplog.records
    assert told.levelname == ("WARNING" if checkpointed else "INFO")
    assert f"checkpointing {'on' if checkpointed else 'off'}: " in told.message and "GB are free" in told.message
    assert f"{sum(fork.length for fork in forks)} tokens" in told.message


def test_auto_leaves_a_finished_training_and_an_unknown_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student("lora")
    for free, batches in ((1, []), (None, [draw_forks(1, 4, 4)])):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert not needs_checkpointing(model, "auto", batches, 100)


def test_an_architecture_that_can_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student("lora")
    monkeypatch.setattr(type(model.model.get_base_model()), "supports_gradient_checkpointing", False)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    assert not needs_checkpointing(model, "auto", [draw_forks(1, 4, 4)], 100)
    with pytest.raises(SpiritLevelError, match="no gradient checkpointing"):
        needs_checkpointing(model, "on", [], 100)


def test_a_run_may_go_on_with_another_setting(tmp_path: Path) -> None:
    steps: list[float] = []

    def stop(metrics: dict[str, float]) -> None:
        if metrics["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(student("lora"), PREFER, examples(), replace(CONFIG, save_seconds=0), tmp_path, on_step=stop)
    train(
        student("lora"), PREFER, examples(), replace(CONFIG, checkpointing="on"), tmp_path,
        on_step=lambda metrics: steps.append(metrics["step"]),
    )  # fmt: skip
    assert steps[0] == 2


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(SpiritLevelError, match=r"checkpointing is maybe\n.*auto, on or off"):
        replace(CONFIG, checkpointing="maybe")  # type: ignore[arg-type]


# --- what is free -------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  16000 kB\nMemFree:  1000 kB\nMemAvailable:   9000 kB\n"}
MACHINES: dict[str, tuple[dict[str, str], int | None]] = {
    "plain": (MEMINFO, 9000 * 1024),
    "another system": ({}, None),
    "no limit": (
        MEMINFO
        | {
            "proc/self/cgroup": "0::/user\n",
            "sys/fs/cgroup/user/memory.max": "max\n",
            "sys/fs/cgroup/user/memory.current": "5000\n",
        },
        9000 * 1024,
    ),
    "container": (
        MEMINFO
        | {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "800000\n",
            "sys/fs/cgroup/memory.current": "600000\n",
            "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 50000\n",
        },
        250_000,
    ),
    "limit of a parent": (
        MEMINFO
        | {
            "proc/self/cgroup": "0::/jobs/mine\n",
            "sys/fs/cgroup/jobs/memory.max": "800000\n",
            "sys/fs/cgroup/jobs/memory.current": "700000\n",
            "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
            "sys/fs/cgroup/jobs/mine/memory.current": "10\n",
        },
        100_000,
    ),
    "version 1": (
        MEMINFO
        | {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "500000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "450000\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 5\ntotal_inactive_file 1000\n",
        },
        51_000,
    ),
}


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_free_is_the_least_of_all_limits(name: str, tmp_path: Path) -> None:
    files, expected = MACHINES[name]
    assert free_memory(CPU, machine(tmp_path, files)) == expected


def test_this_machine_has_something_free() -> None:
    free = free_memory(CPU)
    assert free is None or 0 < free < 2**50
