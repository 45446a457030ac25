"""MasterAdamW is AdamW, also where the weights are too coarse for it; learning-rate schedules."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spiritlevel.train.optimizer import MasterAdamW, Schedule, learning_rate

RATES = [0.01, 0.1, 0.05, 0.02, 0.2, 0.01]


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(3, 4), (5,)]]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = (3 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def same(left: list[nn.Parameter], right: list[nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("max_norm", [1.0, 1e9])
def test_full_precision_weights_get_torch_adamw(dtype: torch.dtype, weight_decay: float, max_norm: float) -> None:
    ours, theirs = weights(dtype), weights(dtype)
    optimizer = MasterAdamW(ours, weight_decay=weight_decay)
    adam = torch.optim.AdamW(theirs, weight_decay=weight_decay)
    for step, rate in enumerate(RATES):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        norm = nn.utils.clip_grad_norm_(theirs, max_norm)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        assert optimizer.step(rate, max_norm) == float(norm)
        assert same(ours, theirs)
        assert all(parameter.grad is None for parameter in ours)


def test_bfloat16_weights_follow_the_rounded_path_of_float32_ones() -> None:
    ours = weights(torch.bfloat16)
    theirs = [nn.Parameter(parameter.detach().float()) for parameter in ours]
    optimizer, adam = MasterAdamW(ours), MasterAdamW(theirs)
    for step, rate in enumerate(RATES):
        give_gradients(ours, step)
        for parameter, twin in zip(ours, theirs, strict=True):
            twin.grad = parameter.grad.float()
        optimizer.step(rate, 1.0)
        adam.step(rate, 1.0)
        assert same(ours, [nn.Parameter(twin.detach().bfloat16()) for twin in theirs])


def test_updates_too_small_for_bfloat16_add_up() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight])
    seen = []
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step(1e-4, 1.0)  # a step of bfloat16 below 1 is 0.004, forty times as much
        seen.append(weight.item())
    assert seen[:10] == [1.0] * 10
    assert seen[-1] == pytest.approx(0.99, abs=0.004)
    assert optimizer.masters[0].item() == pytest.approx(0.99, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(dtype: torch.dtype) -> None:
    straight, first, second = weights(dtype), weights(dtype), weights(dtype)
    optimizer, killed, resumed = MasterAdamW(straight), MasterAdamW(first), MasterAdamW(second)
    for step, rate in enumerate(RATES):
        give_gradients(straight, step)
        optimizer.step(rate, 1.0)
        if step < 3:
            give_gradients(first, step)
            killed.step(rate, 1.0)
    file = io.BytesIO()
    torch.save(killed.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert same(second, first)
    for step, rate in list(enumerate(RATES))[3:]:
        give_gradients(second, step)
        resumed.step(rate, 1.0)
    assert same(second, straight)
    assert same(resumed.masters, optimizer.masters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_with_a_gradient_that_is_not_finite_never_was(dtype: torch.dtype, poison: float) -> None:
    ours, theirs = weights(dtype), weights(dtype)
    optimizer, clean = MasterAdamW(ours), MasterAdamW(theirs)
    for step in range(3):
        if step == 1:
            give_gradients(ours, 99)
            ours[0].grad[0, 0] = poison
            assert not torch.isfinite(torch.tensor(optimizer.step(0.1, 1.0)))
            assert same(ours, theirs)
            assert all(parameter.grad is None for parameter in ours)
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step(0.1, 1.0)
        clean.step(0.1, 1.0)
        assert same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_and_weights_without_a_gradient_stay(dtype: torch.dtype) -> None:
    parameters, before = weights(dtype), weights(dtype)
    parameters[0].requires_grad_(False)
    optimizer = MasterAdamW(parameters, weight_decay=0.1)
    assert len(optimizer.parameters) == 1
    assert optimizer.step(0.1, 1.0) == 0.0
    assert same(parameters, before)


# --- learning rate -----------------------------------------------------------------------------------

schedules: Any = st.sampled_from(["linear", "cosine", "constant"])
shares = st.floats(0, 0.9)


@given(st.integers(1, 60), shares, schedules, st.floats(1e-6, 1))
def test_the_rate_rises_to_the_peak_and_falls(steps: int, warmup: float, schedule: Schedule, peak: float) -> None:
    rates = [learning_rate(step, steps, peak=peak, warmup=warmup, schedule=schedule) for step in range(steps)]
    assert max(rates) == pytest.approx(peak)
    assert all(rate > 0 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    warm = max(1, round(warmup * steps)) if warmup else 0
    assert rates[:warm] == pytest.approx([peak * (step + 1) / warm for step in range(warm)])
    if schedule == "constant":
        assert rates[warm:] == [peak] * (steps - warm)


@given(st.integers(3, 60), shares, st.sampled_from(["linear", "cosine"]))
def test_after_warm_up_the_rate_falls_to_zero_by_its_curve(steps: int, warmup: float, schedule: Schedule) -> None:
    warm = max(1, round(warmup * steps)) if warmup else 0
    fall = [
        learning_rate(step, steps, peak=1.0, warmup=warmup, schedule=schedule)
        for step in range(warm, steps + 1)  # the step after the last would have none
    ]
    assert fall[0] == 1.0
    assert fall[-1] == pytest.approx(0, abs=1e-12)
    # Both curves are symmetric about their middle.
    assert [a + b for a, b in zip(fall, fall[::-1], strict=True)] == pytest.approx([1.0] * len(fall))
    if schedule == "linear":
        drops = [a - b for a, b in pairwise(fall)]
        assert drops == pytest.approx([drops[0]] * len(drops))


def test_the_known_values_of_a_cosine() -> None:
    rates = [learning_rate(step, 12, peak=2.0, warmup=4 / 12, schedule="cosine") for step in range(12)]
    root = 2**0.5 / 2
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4::2] == pytest.approx([2.0, 1 + root, 1.0, 1 - root])
