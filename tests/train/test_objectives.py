"""Losses as pure functions, and what an objective makes of a record."""

from __future__ import annotations

from math import exp, log, log1p

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spiritlevel.data import Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, ForkScores, LocalModel, score_batch
from spiritlevel.train import DPO, OBJECTIVES, SFT, Example, Window, dpo_loss
from tiny import build_llama

logprob = st.floats(-200, 0)
RECORD = Preference.of("hello", "the one", "in the user", rejected_finished=False)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- dpo ---------------------------------------------------------------------------------------------


@given(logprob, logprob, st.floats(0.01, 5))
def test_at_the_reference_the_loss_is_ln_2(chosen: float, rejected: float, beta: float) -> None:
    loss = dpo_loss(column(chosen), column(rejected), column(chosen), column(rejected), beta=beta)
    assert abs(float(loss) - log(2)) <= 1e-12


@given(logprob, logprob, logprob, logprob, st.floats(0.01, 1))
def test_the_loss_of_a_pair_and_of_its_swap_differ_by_the_margin(
    chosen: float, rejected: float, reference_chosen: float, reference_rejected: float, beta: float
) -> None:
    pair = [column(chosen), column(rejected), column(reference_chosen), column(reference_rejected)]
    swap = [pair[1], pair[0], pair[3], pair[2]]
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    difference = dpo_loss(*swap, beta=beta) - dpo_loss(*pair, beta=beta)
    assert float(difference) == pytest.approx(beta * margin, abs=1e-9)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_gradient_of_dpo_is_right(beta: float) -> None:
    draw = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen, rejected = draw[0].requires_grad_(), draw[1].clone().detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda c, r: dpo_loss(c, r, draw[2], draw[3], beta=beta), (chosen, rejected))
    # ∂/∂chosen = −β σ(−βh), eq. 8 of the paper.
    [slope] = torch.autograd.grad(dpo_loss(chosen, rejected, draw[2], draw[3], beta=beta).sum(), chosen)
    margin = ((chosen - draw[2]) - (rejected - draw[3])).detach()
    torch.testing.assert_close(slope, -beta * torch.sigmoid(-beta * margin))


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
    asked = objective.reference_fork(fork)
    assert asked == Fork((1,), ((0, 1), (7, 8)))
    loss, _ = objective.loss(scores, [Example(fork, (-2.0, -2.0))], Window(1, 6))
    assert float(loss) == pytest.approx(log1p(exp(-((-2 + 2) - (-5 + 2)))))
    assert DPO(beta=1.0).reference_fork(fork) == fork
    with pytest.raises(SpiritLevelError, match="margin_tokens is 0"):
        DPO(beta=1.0, margin_tokens=0)


@pytest.mark.parametrize(
    "objective", [DPO(0.2, 0.7, 3.0), DPO(0.2, 0.7, 3.0, 2), SFT()], ids=["dpo", "openings", "sft"]
)
def test_losses_and_metrics_of_the_parts_add_up_to_the_whole(objective: DPO | SFT) -> None:
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


def test_objectives_are_found_by_their_names() -> None:
    assert all(objective.name == name and objective.summary for name, objective in OBJECTIVES.items())
    assert OBJECTIVES["dpo"] is DPO
    assert OBJECTIVES["sft"] is SFT
