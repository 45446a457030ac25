"""What the methods that learn from their own rollouts have in common: experience, the clipped surrogate, metrics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spiritlevel.train.objective import Example, Metrics, Objective


@dataclass(frozen=True, eq=False, kw_only=True)
class Experience(Example):
    """A prompt with its rollouts as continuations, and for every token, in their order, each [scored]:

    logprobs: log π of the policy that drew it; reference_logprobs: log π_ref; advantages; with a value model, the
    values it gave and the returns it should have given.
    """

    logprobs: Tensor
    advantages: Tensor
    reference_logprobs: Tensor
    values: Tensor
    returns: Tensor


@dataclass(frozen=True)
class Batch:
    """All rollouts of one iteration, padded. group: the prompt of each row. Without a reference its log-probabilities
    are the policy's, without a value model the values are zero."""

    scores: Float[Tensor, " rows"]
    group: Int[Tensor, " rows"]
    mask: Bool[Tensor, "rows length"]
    logprobs: Float[Tensor, "rows length"]
    reference_logprobs: Float[Tensor, "rows length"]
    values: Float[Tensor, "rows length"]

    @property
    def kl(self) -> Float[Tensor, "rows length"]:
        """log π − log π_ref of each token: its mean over what π draws is the divergence."""
        return torch.where(self.mask, self.logprobs - self.reference_logprobs, 0.0)


@dataclass(frozen=True)
class Advantages:
    """advantages, returns: [rows, length]; metrics: what the method has to say of the whole iteration."""

    advantages: Float[Tensor, "rows length"]
    returns: Float[Tensor, "rows length"]
    metrics: dict[str, float]


class PolicyObjective(Objective):
    """A method on rollouts. `advantages` sees all of an iteration, `loss` one micro-batch of a step."""

    needs_values: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities enter the reward or the loss."""

    @abstractmethod
    def advantages(self, batch: Batch, history: Sequence[dict[str, float]]) -> Advantages:
        """history: the metrics of all steps so far, for what adapts itself."""


def clipped_surrogate(
    ratio: Float[Tensor, " n"], advantages: Float[Tensor, " n"], *, below: float, above: float
) -> Float[Tensor, " n"]:
    """max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε')), eq. 7 of PPO (Schulman et al. 2017, arXiv:1707.06347)."""
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - below, 1 + above))


def joined(examples: Sequence[Experience], name: str, like: Tensor) -> Tensor:
    """One field of all examples of a micro-batch, in the order of their scored tokens."""
    return torch.cat([getattr(example, name) for example in examples]).to(like)


def ratio_metrics(ratio: Tensor, advantages: Tensor, *, below: float, above: float, count: int) -> Metrics:
    """Of the policy's step: mean ratio, share of clipped terms, Schulman's estimate of KL(old‖new), (ρ − 1) − log ρ."""
    with torch.no_grad():
        clipped = torch.where(advantages > 0, ratio > 1 + above, ratio < 1 - below)
        return {
            "ratio": ratio.sum() / count,
            "clip_fraction": clipped.to(ratio).sum() / count,
            "step_kl": ((ratio - 1) - ratio.log()).sum() / count,
        }


def log_ratio_kl(log_ratio: Any) -> Any:
    """k3 = exp(−k1) − 1 + k1 of k1 = log π − log π_ref: unbiased and never negative (Schulman 2020, "Approximating KL
    Divergence")."""
    return torch.exp(-log_ratio) - 1 + log_ratio
