"""Reward modelling: a score for every reply, so that the better one of two scores higher (Bradley & Terry 1952;
Stiennon et al. 2020, arXiv:2009.01325; Ouyang et al. 2022, arXiv:2203.02155)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from spiritlevel.data import Preference, Ranking
from spiritlevel.errors import check_setting
from spiritlevel.models import Fork, LocalModel, reward_fork
from spiritlevel.train.objective import Example, Metrics, RecordObjective, Window
from spiritlevel.train.objectives.pairwise import pair_fork


def bradley_terry_loss(
    better: Float[Tensor, " pairs"],
    worse: Float[Tensor, " pairs"],
    *,
    margin: Float[Tensor, " pairs"] | float = 0.0,
    probability: Float[Tensor, " pairs"] | float = 1.0,
) -> Float[Tensor, " pairs"]:
    """−p log σ(s_w − s_l − m) − (1 − p) log σ(s_l − s_w + m): the cross-entropy with the probability p that the first
    is better; m is a margin it should win by (Touvron et al. 2023, arXiv:2307.09288, eq. 2)."""
    gain = better - worse - margin
    return -probability * logsigmoid(gain) - (1 - probability) * logsigmoid(-gain)


@dataclass(frozen=True, kw_only=True)
class RewardExample(Example):
    """pairs: for each pair of replies of the fork (better, worse) its margin and its probability."""

    pairs: tuple[tuple[int, int, float, float], ...]


@dataclass(frozen=True)
class Reward(RecordObjective):
    """Of K ranked replies all pairs count, their mean for the prompt, in one fork (Ouyang et al., eq. 1).

    centre_weight: of (s_w + s_l)², which keeps scores near 0 (Eisenstein et al. 2023, arXiv:2312.09244).
    """

    centre_weight: float = 0.0

    name: ClassVar[str] = "reward"
    reads = (Preference, Ranking)

    def __post_init__(self) -> None:
        check_setting("centre_weight", self.centre_weight, self.centre_weight >= 0, "0 or more")

    def examples(self, records: Sequence[Preference | Ranking], model: LocalModel) -> list[Example]:
        return [self.example(record, model) for record in records]

    def example(self, record: Preference | Ranking, model: LocalModel) -> RewardExample:
        if isinstance(record, Ranking):
            replies = tuple(model.reply_tokens(reply) for reply in record.completions)
            fork = Fork(model.prompt_tokens(record.chat), replies)
            pairs = [(better, worse, 0.0, 1.0) for better, worse in record.pairs]
        else:
            fork = pair_fork(record, model)
            pairs = [(0, 1, record.margin, record.probability)]
        return RewardExample(reward_fork(fork, model.pad_token), kind=record.source, pairs=tuple(pairs))

    def loss(
        self, scores: Float[Tensor, " replies"], examples: Sequence[RewardExample], window: Window
    ) -> tuple[Tensor, Metrics]:
        rows, first = [], 0
        for example in examples:
            rows += [(first + i, first + j, m, p, 1 / len(example.pairs)) for i, j, m, p in example.pairs]
            first += len(example.fork.continuations)
        better, worse, margin, probability, weight = torch.tensor(rows, dtype=torch.float64).T
        s_w, s_l = scores[better.long()], scores[worse.long()]
        weight = weight.to(scores) / window.examples
        losses = bradley_terry_loss(s_w, s_l, margin=margin.to(scores), probability=probability.to(scores))
        centre = (s_w + s_l) ** 2
        with torch.no_grad():
            metrics = {
                "accuracy": (weight * ((s_w > s_l) + 0.5 * (s_w == s_l))).sum(),
                "margin": (weight * (s_w - s_l)).sum(),
                "reward_chosen": (weight * s_w).sum(),
                "reward_rejected": (weight * s_l).sum(),
            }
        return (weight * (losses + self.centre_weight * centre)).sum(), metrics
