"""Losses as pure functions, and what an objective makes of a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from math import exp, log, log1p
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp
from torch import Tensor

from spiritlevel.cli.train import METHODS
from spiritlevel.data import Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, ForkScores, LocalModel, score_batch
from spiritlevel.train import (
    CPO,
    DPO,
    IPO,
    OBJECTIVES,
    ONLINE,
    ORPO,
    SFT,
    ConservativeDPO,
    Example,
    Hinge,
    Objective,
    Pairwise,
    RobustDPO,
    SimPO,
    Window,
)
from spiritlevel.train.objectives import (
    cdpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)
from spiritlevel.train.objectives.orpo import log1mexp
from tiny import build_llama

RECORD = Preference.of("hello", "the one", "in the user", rejected_finished=False)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- losses of a margin ------------------------------------------------------------------------------

margin = st.floats(-50, 50)
scale = st.floats(0.01, 5)
flips = st.floats(0, 0.49)


@given(scale, flips)
def test_at_the_reference_the_loss_is_ln_2(beta: float, flipped: float) -> None:
    at_the_reference = column(0.0)
    for loss in (
        dpo_loss(at_the_reference, beta=beta),
        cdpo_loss(at_the_reference, beta=beta, flipped=flipped),
        robust_dpo_loss(at_the_reference, beta=beta, flipped=flipped),
    ):
        assert abs(float(loss) - log(2)) <= 1e-9


@given(margin, st.floats(0.01, 1))
def test_the_loss_of_a_pair_and_of_its_swap_differ_by_the_margin(h: float, beta: float) -> None:
    difference = dpo_loss(column(-h), beta=beta) - dpo_loss(column(h), beta=beta)
    assert float(difference) == pytest.approx(beta * h, abs=1e-9)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_gradient_of_dpo_is_right(beta: float) -> None:
    h = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    # ∂/∂h = −β σ(−βh), eq. 8 of the paper.
    [slope] = torch.autograd.grad(dpo_loss(h, beta=beta).sum(), h)
    torch.testing.assert_close(slope, -beta * torch.sigmoid(-beta * h.detach()))


@given(margin, scale)
def test_without_flips_smoothed_and_robust_dpo_are_dpo(h: float, beta: float) -> None:
    expected = dpo_loss(column(h), beta=beta)
    torch.testing.assert_close(cdpo_loss(column(h), beta=beta, flipped=0.0), expected)
    torch.testing.assert_close(robust_dpo_loss(column(h), beta=beta, flipped=0.0), expected)


@given(margin, st.floats(0.01, 1), flips)
def test_robust_dpo_is_dpo_in_the_mean_over_flips_and_smoothed_dpo_is_not(h: float, beta: float, e: float) -> None:
    right, wrong = (float(robust_dpo_loss(column(sign * h), beta=beta, flipped=e)) for sign in (1, -1))
    expected = float(dpo_loss(column(h), beta=beta))
    assert (1 - e) * right + e * wrong == pytest.approx(expected, rel=1e-9, abs=1e-9)
    smoothed = float(cdpo_loss(column(h), beta=beta, flipped=e))
    assert smoothed == pytest.approx(expected + e * beta * h, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("flipped", [0.05, 0.3])
def test_smoothed_dpo_is_content_at_the_odds_of_its_labels(flipped: float) -> None:
    h = column(log((1 - flipped) / flipped) / 0.5).requires_grad_()
    [slope] = torch.autograd.grad(cdpo_loss(h, beta=0.5, flipped=flipped).sum(), h)
    assert abs(float(slope)) < 1e-12


def test_what_a_margin_costs_by_ipo_hinge_and_simpo() -> None:
    h = column(-4.0, 0.0, 4.0, 5.0, 10.0)
    assert ipo_loss(h, beta=0.125).tolist() == [64, 16, 0, 1, 36]
    assert hinge_loss(h, beta=0.2).tolist() == pytest.approx([1.8, 1, 0.2, 0, 0])
    expected = [log1p(exp(-(2.0 * value - 1.5))) for value in h.tolist()]
    assert simpo_loss(h, beta=2.0, gamma=1.5).tolist() == pytest.approx(expected)


# --- orpo --------------------------------------------------------------------------------------------


@given(st.floats(-80, -1e-12))
def test_log1mexp_is_exact_at_both_ends(log_p: float) -> None:
    with mp.workdps(60):
        expected = float(mp.log1p(-mp.exp(mp.mpf(log_p))))
    assert float(log1mexp(column(log_p))) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_reply_gives_orpo_finite_numbers(dtype: torch.dtype) -> None:
    chosen = torch.tensor([0.0, -1e-9, -90.0, -1.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-90.0, 0.0, 0.0, -1.0], dtype=dtype, requires_grad=True)
    loss = orpo_loss(chosen, rejected, beta=0.1)
    slopes = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert all(bool(torch.isfinite(values).all()) for values in (loss, *slopes))
    assert float(loss[3].detach()) == pytest.approx(0.1 * log(2))


def test_the_gradient_of_orpo_is_right() -> None:
    draw = -torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 - 1e-3
    chosen, rejected = draw.unbind()
    chosen, rejected = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c, r: orpo_loss(c, r, beta=0.3), (chosen, rejected))


# --- pairs of replies --------------------------------------------------------------------------------

PAIRWISE: list[Pairwise] = [
    DPO(0.2), ConservativeDPO(0.2), RobustDPO(0.2), IPO(0.2), IPO(0.2, average=False), Hinge(0.2), SimPO(0.2), CPO(0.2),
    ORPO(0.2), DPO(0.2, 0.7, 3.0, 2), SimPO(2.0, 0.5, 2.0, 3), ORPO(0.2, margin_tokens=2),
]  # fmt: skip
IDS = [f"{type(objective).__name__}-{number}" for number, objective in enumerate(PAIRWISE)]
# Two pairs: replies of two tokens and one, and of one and three.
TWO = [Fork((1,), ((2, 3), (4,))), Fork((1,), ((5,), (6, 7, 8)))]
OWNERS = torch.tensor([0, 0, 1, 2, 3, 3, 3])


def loss_of(objective: Objective, logprobs: Tensor, *references: tuple[float, float]) -> Tensor:
    examples = [Example(fork, reference) for fork, reference in zip(TWO, references, strict=True)]
    return objective.loss(ForkScores(logprobs, OWNERS, 4), examples, Window.over(examples))[0]


@pytest.mark.parametrize("objective", PAIRWISE, ids=IDS)
def test_the_gradient_of_a_pair_is_right_and_pushes_the_replies_apart(objective: Pairwise) -> None:
    draw = -torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.05
    logprobs = draw.requires_grad_()
    references = ((-1.1, -0.7), (-0.4, -2.0))
    assert torch.autograd.gradcheck(lambda values: loss_of(objective, values, *references), (logprobs,))
    [slope] = torch.autograd.grad(loss_of(objective, logprobs, *references), logprobs)
    chosen = OWNERS % 2 == 0
    assert bool((slope[chosen] < 0).all())
    assert bool((slope[~chosen] >= 0).all()) and float(slope[~chosen].sum()) > 0


@pytest.mark.parametrize("objective", PAIRWISE, ids=IDS)
def test_what_needs_no_reference_asks_for_none_and_reads_none(objective: Pairwise) -> None:
    logprobs = column(-1, -2, -3, -1, -0.5, -0.25, -4)
    low, high = (loss_of(objective, logprobs, (shift, -1.0), (-1.0, shift)) for shift in (-9.0, -1.0))
    free = isinstance(objective, SimPO | CPO | ORPO)
    assert (objective.question(TWO[0]) is None) == free
    assert (float(low) == float(high)) == free


def test_what_is_averaged_over_tokens_does_not_feel_a_length() -> None:
    # Every token of a reply has the same log-probability: means are as of one token.
    short, long = Fork((1,), ((2,), (3,))), Fork((1,), ((2,) * 5, (3,) * 7))
    brief = ForkScores(column(-1, -2), torch.tensor([0, 1]), 2)
    ample = ForkScores(column(*[-1] * 5, *[-2] * 7), torch.tensor([0] * 5 + [1] * 7), 2)
    for objective in (IPO(0.2), SimPO(2.0), ORPO(0.1, nll_weight=0.0)):
        found = [
            float(objective.loss(scores, [example], Window.over([example]))[0])
            for scores, example in (
                (brief, Example(short, (-1.5, -1.5))),
                (ample, Example(long, (-1.5 * 5, -1.5 * 7))),
            )
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-12)
    summed = IPO(0.2, average=False)
    assert float(summed.loss(ample, [Example(long, (-7.5, -10.5))], Window(1, 5))[0]) == pytest.approx((6.0 - 2.5) ** 2)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DPO(0.0), "beta is 0.0"), (lambda: DPO(0.1, nll_weight=-1.0), "nll_weight is -1.0"),
        (lambda: DPO(0.1, opening_weight=-1.0), "opening_weight"), (lambda: SimPO(2.0, gamma=-0.1), "gamma"),
        (lambda: ConservativeDPO(0.1, flipped=0.5), "flipped is 0.5"),
        (lambda: RobustDPO(0.1, flipped=-0.1), "flipped"), (lambda: IPO(float("nan")), "beta is nan"),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_named(make: Callable[[], Pairwise], name: str) -> None:
    with pytest.raises(SpiritLevelError, match=name):
        make()


def test_the_metrics_of_dpo_are_those_of_the_paper() -> None:
    # Two pairs of one-token replies; the first is preferred as it should be, the second is not.
    scores = ForkScores(column(-1, -4, -3, -2), torch.arange(4), 4)
    examples = [Example(Fork((1,), ((2,), (3,))), (-2.0, -2.0)) for _ in range(2)]
    loss, metrics = DPO(beta=0.5, nll_weight=0.25).loss(scores, examples, Window.over(examples))
    found = {name: round(float(value), 12) for name, value in metrics.items()}
    losses = [log1p(exp(-1.5)), log1p(exp(0.5))]
    assert found == {
        "dpo": round(sum(losses) / 2, 12),
        "nll": 2.0,
        "margin": 0.5 * (3 - 1) / 2,
        "accuracy": 0.5,
        "reward_chosen": 0.5 * (1 - 1) / 2,
        "reward_rejected": 0.5 * (-2 + 0) / 2,
    }
    assert float(loss) == pytest.approx(found["dpo"] + 0.25 * found["nll"])


def test_the_opening_of_a_chosen_reply_counts_as_often_as_it_is_told_to() -> None:
    # Replies of six tokens and of one; the log-probability of every chosen token is −1, of every rejected one −9.
    fork = Fork((1,), (tuple(range(6)), (2,)))
    scores = ForkScores(column(*[-1] * 6, -9, *[-1] * 6, -9), torch.tensor([*[0] * 6, 1, *[2] * 6, 3]), 4)
    examples = [Example(fork, (-6.0, -9.0))] * 2
    found = [
        float(DPO(beta=0.1, nll_weight=1.0, opening_weight=weight).loss(scores, examples, Window.over(examples))[0])
        for weight in (1.0, 5.0, 0.0)
    ]
    assert found == pytest.approx([log(2) + 1.0, log(2) + (4 * 5 + 2) / 6, log(2) + 2 / 6])


def test_a_margin_of_openings_counts_their_tokens_and_asks_the_reference_for_no_more() -> None:
    fork = Fork((1,), (tuple(range(6)), (7, 8, 9)))
    scores = ForkScores(column(*[-1] * 6, -2, -3, -50), torch.tensor([*[0] * 6, 1, 1, 1]), 2)
    objective = DPO(beta=1.0, margin_tokens=2)
    asked = objective.question(fork)
    assert asked == Fork((1,), ((0, 1), (7, 8)))
    loss, _ = objective.loss(scores, [Example(fork, (-2.0, -2.0))], Window(1, 6))
    assert float(loss) == pytest.approx(log1p(exp(-((-2 + 2) - (-5 + 2)))))
    assert DPO(beta=1.0).question(fork) == fork
    with pytest.raises(SpiritLevelError, match="margin_tokens is 0"):
        DPO(beta=1.0, margin_tokens=0)


@pytest.mark.parametrize("objective", [*PAIRWISE, SFT()], ids=[*IDS, "SFT"])
def test_losses_and_metrics_of_the_parts_add_up_to_the_whole(objective: Objective) -> None:
    model = build_llama()
    forks = [Fork((1, 2, 3)[: 1 + n % 3], (tuple(range(9, 10 + n)), (5, 6))) for n in range(5)]
    if isinstance(objective, SFT):
        forks = [Fork(fork.prompt, fork.continuations[:1]) for fork in forks]
    examples = [Example(fork, (-20.0 - n, -15.0)) for n, fork in enumerate(forks)]
    window = Window.over(examples)

    def measure(part: list[Example]) -> dict[str, float]:
        scores = score_batch(model, [example.fork for example in part], pad_token=0)
        loss, metrics = objective.loss(scores, part, window)
        return {name: float(value.detach()) for name, value in {"loss": loss, **metrics}.items()}

    whole = measure(examples)
    parts = [measure(examples[:1]), measure(examples[1:3]), measure(examples[3:])]
    for name, value in whole.items():
        assert sum(part[name] for part in parts) == pytest.approx(value, rel=1e-12, abs=1e-12)


# --- sft ---------------------------------------------------------------------------------------------


def test_sft_is_the_loss_of_transformers_with_masked_labels() -> None:
    model = build_llama()
    forks = [Fork((1, 2, 3, 4), ((5, 6),)), Fork((7,), ((8, 9, 10, 11, 12),)), Fork((13, 14), ((15,),))]
    longest = max(len(fork.prompt) + len(fork.continuations[0]) for fork in forks)
    ids, labels, mask = [], [], []
    for fork in forks:
        [reply] = fork.continuations
        padding = longest - len(fork.prompt) - len(reply)
        ids.append([*fork.prompt, *reply, *[0] * padding])
        labels.append([*[-100] * len(fork.prompt), *reply, *[-100] * padding])
        mask.append([1] * (longest - padding) + [0] * padding)
    expected = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), labels=torch.tensor(labels)).loss
    examples = [Example(fork) for fork in forks]
    loss, metrics = SFT().loss(score_batch(model, forks, pad_token=0), examples, Window.over(examples))
    # transformers takes its loss in float32.
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(metrics["nll"]) == float(loss.detach())


# --- records -----------------------------------------------------------------------------------------


def test_a_reply_that_was_cut_short_is_trained_without_an_end(tiny_model: LocalModel) -> None:
    fork = DPO(beta=0.1).fork(RECORD, tiny_model)
    chosen, rejected = fork.continuations
    assert fork.prompt == tiny_model.prompt_tokens(RECORD.chat)
    assert chosen == tiny_model.reply_tokens("the one")
    assert chosen[-1] == tiny_model.end_token
    assert rejected == tiny_model.reply_tokens("in the user", finished=False)
    assert rejected[-1] != tiny_model.end_token
    assert SFT().fork(RECORD, tiny_model) == Fork(fork.prompt, (chosen,))


def test_objectives_are_found_by_their_names_and_all_have_a_subcommand_with_their_settings() -> None:
    objectives: dict[str, Any] = OBJECTIVES | ONLINE
    assert all(objective.name == name for name, objective in objectives.items())
    assert METHODS.keys() == objectives.keys()
    for name, method in METHODS.items():
        defaults = {setting.name: setting.default for setting in fields(objectives[name])}
        # Seldom changed, or given by an option that all methods have.
        left_to_python = {"seed", "max_new_tokens", "value_clip", "discount"}
        assert defaults.keys() - left_to_python == set(method.options)
        assert objectives[name](**method.options).name == name
