"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spiritlevel.errors import check_setting
from spiritlevel.models import ForkScores
from spiritlevel.train.advantages import leave_one_out_advantages
from spiritlevel.train.objective import Metrics, Window
from spiritlevel.train.objectives.policy import (
    Advantages,
    Batch,
    Experience,
    PolicyObjective,
    clipped_surrogate,
    joined,
    ratio_metrics,
)


@dataclass(frozen=True)
class RLOO(PolicyObjective):
    """A reply is one action: its reward is the score less β times its summed log π/π_ref, its baseline the mean of its
    prompt's other samples. clip: of the reply's ratio π/π_old, which matters only beyond the first step on a rollout.
    """

    kl_coefficient: float = 0.05
    clip: float = 0.2

    name: ClassVar[str] = "rloo"

    def __post_init__(self) -> None:
        check_setting("kl_coefficient", self.kl_coefficient, self.kl_coefficient >= 0, "0 or more")
        check_setting("clip", self.clip, 0 < self.clip < 1, "between 0 and 1")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def advantages(self, batch: Batch, history: Sequence[dict[str, float]]) -> Advantages:
        rewards = batch.scores - self.kl_coefficient * batch.kl.sum(1)
        replies = leave_one_out_advantages(rewards, batch.group)
        spread = torch.where(batch.mask, replies[:, None], 0.0)
        return Advantages(spread, torch.zeros_like(spread), {"kl_coefficient": self.kl_coefficient})

    def loss(self, scores: ForkScores, examples: Sequence[Experience], window: Window) -> tuple[Tensor, Metrics]:
        old, advantages = (joined(examples, field, scores.logprobs) for field in ("logprobs", "advantages"))
        log_ratio = scores.logprobs - old
        sums = log_ratio.new_zeros(scores.continuations).index_add(0, scores.owner, log_ratio)
        first = scores.counts().cumsum(0) - scores.counts()
        ratio, of_reply = sums.exp(), advantages[first]
        terms = clipped_surrogate(ratio, of_reply, below=self.clip, above=self.clip)
        policy = terms.sum() / window.continuations
        metrics = ratio_metrics(ratio, of_reply, below=self.clip, above=self.clip, count=window.continuations)
        return policy, metrics | {"policy_loss": policy.detach()}
