"""Group Relative Policy Optimization (Shao et al. 2024, arXiv:2402.03300), with what came after it as switches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from spiritlevel.errors import check_setting
from spiritlevel.models import ForkScores
from spiritlevel.train.advantages import group_advantages
from spiritlevel.train.objective import Metrics, Window
from spiritlevel.train.objectives.policy import (
    Advantages,
    Batch,
    Experience,
    PolicyObjective,
    clipped_surrogate,
    joined,
    log_ratio_kl,
    ratio_metrics,
)

Mean = Literal["token", "reply", "constant"]
Ratio = Literal["token", "reply"]


@dataclass(frozen=True)
class GRPO(PolicyObjective):
    """The samples of a prompt are each other's baseline; there is no value model.

    mean: "token" divides by all tokens of the step (DAPO: Yu et al. 2025, arXiv:2503.14476), "reply" by each reply's
    own tokens and then by the replies (the paper's), "constant" by the replies times `max_new_tokens` (Dr. GRPO: Liu et
    al. 2025, arXiv:2503.20783). scale: by the group's standard deviation; Dr. GRPO does not. clip_above: the upper
    clip, 0.28 in DAPO. ratio: of each token, or its geometric mean over the reply (GSPO: Zheng et al. 2025,
    arXiv:2507.18071, with clips of about 4e-4). kl_weight: of k3, the divergence from the reference, in the loss.
    """

    mean: Mean = "token"
    ratio: Ratio = "token"
    scale: bool = True
    clip: float = 0.2
    clip_above: float = 0.2
    kl_weight: float = 0.0
    max_new_tokens: int = 64

    name: ClassVar[str] = "grpo"

    def __post_init__(self) -> None:
        check_setting("mean", self.mean, self.mean in get_args(Mean), f"one of {', '.join(get_args(Mean))}")
        check_setting("ratio", self.ratio, self.ratio in get_args(Ratio), f"one of {', '.join(get_args(Ratio))}")
        check_setting("clip", self.clip, 0 < self.clip < 1, "between 0 and 1")
        check_setting("clip_above", self.clip_above, self.clip_above > 0, "a number above 0")
        check_setting("kl_weight", self.kl_weight, self.kl_weight >= 0, "0 or more")

    @property
    def needs_reference(self) -> bool:
        return self.kl_weight > 0

    def advantages(self, batch: Batch, history: Sequence[dict[str, float]]) -> Advantages:
        replies = group_advantages(batch.scores, batch.group, scale=self.scale)
        spread = torch.where(batch.mask, replies[:, None], 0.0)
        return Advantages(spread, torch.zeros_like(spread), {"kl_weight": self.kl_weight})

    def loss(self, scores: ForkScores, examples: Sequence[Experience], window: Window) -> tuple[Tensor, Metrics]:
        logprobs = scores.logprobs
        old, advantages = (joined(examples, field, logprobs) for field in ("logprobs", "advantages"))
        log_ratio = logprobs - old
        if self.ratio == "reply":
            log_ratio = _reply_means(log_ratio, scores)
        ratio = log_ratio.exp()
        terms = clipped_surrogate(ratio, advantages, below=self.clip, above=self.clip_above)
        weights = self._weights(scores, window)
        policy = (weights * terms).sum()
        metrics = ratio_metrics(ratio, advantages, below=self.clip, above=self.clip_above, count=window.tokens)
        metrics["policy_loss"] = policy.detach()
        if not self.kl_weight:
            return policy, metrics
        kl = (weights * log_ratio_kl(logprobs - joined(examples, "reference_logprobs", logprobs))).sum()
        return policy + self.kl_weight * kl, metrics | {"kl_loss": kl.detach()}

    def _weights(self, scores: ForkScores, window: Window) -> Float[Tensor, " scored"]:
        """How much each token counts in the mean over the whole step."""
        if self.mean == "token":
            return torch.full_like(scores.logprobs, 1 / window.tokens)
        if self.mean == "constant":
            return torch.full_like(scores.logprobs, 1 / (window.continuations * self.max_new_tokens))
        return 1 / (scores.counts()[scores.owner] * window.continuations).to(scores.logprobs)


def _reply_means(values: Float[Tensor, " scored"], scores: ForkScores) -> Float[Tensor, " scored"]:
    sums = values.new_zeros(scores.continuations).index_add(0, scores.owner, values)
    return (sums / scores.counts())[scores.owner]
