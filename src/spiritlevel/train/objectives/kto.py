"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306): single replies, each good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from spiritlevel.data import Feedback, Preference, as_feedback
from spiritlevel.errors import SpiritLevelError, check_setting
from spiritlevel.models import Fork, ForkScores, LocalModel
from spiritlevel.train.objective import Example, Metrics, RecordObjective, Window

DESIRABLE, UNDESIRABLE = "desirable", "undesirable"


def kto_loss(
    log_ratios: Float[Tensor, " replies"], desirable: Bool[Tensor, " replies"], kl: float, *, beta: float
) -> Float[Tensor, " replies"]:
    """1 − v of eq. 8, for λ = 1: 1 − σ(β (r − z₀)) of a desirable reply, 1 − σ(β (z₀ − r)) of an undesirable one.

    log_ratios: r = log π/π_ref of each reply; kl: z₀, an estimate of KL(π‖π_ref), at least 0.
    """
    gain = beta * (log_ratios - kl)
    return 1 - torch.sigmoid(torch.where(desirable, gain, -gain))


@dataclass(frozen=True)
class KTO(RecordObjective):
    """beta: how fast a gain or a loss saturates. desirable_weight, undesirable_weight: λ_D and λ_U; the authors want
    λ_D n_D / (λ_U n_U) between 1 and 4/3, n counting the good and the bad replies (section 4.2).

    z₀ is the mean log-ratio of replies to *other* prompts, over the whole step. Each example has drawn its other reply
    from the whole set by `seed`, so the order of the data is free and no batch meets its own replies.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    seed: int = 0

    name: ClassVar[str] = "kto"
    reads = (Feedback, Preference)

    def __post_init__(self) -> None:
        check_setting("beta", self.beta, self.beta > 0, "a number above 0")
        check_setting("desirable_weight", self.desirable_weight, self.desirable_weight >= 0, "0 or more")
        check_setting("undesirable_weight", self.undesirable_weight, self.undesirable_weight >= 0, "0 or more")

    def examples(self, records: Sequence[Feedback | Preference], model: LocalModel) -> list[Example]:
        judged = [feedback for record in records for feedback in as_feedback(record)]
        forks = [
            Fork(model.prompt_tokens(one.chat), (model.reply_tokens(one.reply, finished=one.finished),))
            for one in judged
        ]
        others = _other_prompts([fork.prompt for fork in forks], self.seed)
        return [
            Example(
                fork,
                kind=DESIRABLE if one.label else UNDESIRABLE,
                question=replace(fork, continuations=(*fork.continuations, *forks[other].continuations)),
            )
            for one, fork, other in zip(judged, forks, others, strict=True)
        ]

    def window(self, model: LocalModel, examples: Sequence[Example]) -> Window:
        """Estimates z₀ before the step's first gradient, so that it does not depend on the micro-batches."""
        mismatched = [Fork(e.fork.prompt, e.question.continuations[1:]) for e in examples if e.question is not None]
        sums = model.score_all(mismatched)
        ratios = [found - example.reference[1] for [found], example in zip(sums, examples, strict=True)]
        return replace(Window.over(examples), kl=max(0.0, sum(ratios) / len(ratios)))

    def loss(self, scores: ForkScores, examples: Sequence[Example], window: Window) -> tuple[Tensor, Metrics]:
        sums = scores.sums()
        ratios = sums - torch.tensor([example.reference[0] for example in examples], dtype=torch.float64).to(sums)
        desirable = torch.tensor([example.kind == DESIRABLE for example in examples], device=sums.device)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight).to(sums)
        losses = weights * kto_loss(ratios, desirable, window.kl, beta=self.beta)
        with torch.no_grad():
            rewards = self.beta * ratios
            metrics = {
                "reward_desirable": (rewards * desirable).sum() / window.examples,
                "reward_undesirable": (rewards * ~desirable).sum() / window.examples,
                "kl": ratios.new_tensor(window.kl * len(examples) / window.examples),
            }
        return losses.sum() / window.examples, metrics


def _other_prompts(prompts: Sequence[tuple[int, ...]], seed: int) -> list[int]:
    """For each prompt the index of a reply to another one, drawn so that each reply is drawn about once."""
    if len(set(prompts)) < 2:
        raise SpiritLevelError(
            "KTO needs replies to at least two different prompts", remedy="Give more records, or use `sft`."
        )
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(prompts)).tolist()
    others = [0] * len(prompts)
    for place, index in enumerate(order):
        steps = range(1, len(order))
        others[index] = next(o for s in steps if prompts[o := order[(place + s) % len(order)]] != prompts[index])
    return others
