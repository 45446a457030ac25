"""Proximal Policy Optimization with a KL penalty (Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019,
arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from spiritlevel.errors import check_setting
from spiritlevel.train.actor_critic import ActorCriticScores
from spiritlevel.train.advantages import generalised_advantages, token_rewards, whiten
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


def clipped_value_loss(
    values: Float[Tensor, " tokens"],
    old_values: Float[Tensor, " tokens"],
    returns: Float[Tensor, " tokens"],
    *,
    clip: float,
) -> Float[Tensor, " tokens"]:
    """½ max((v − R)², (clip(v, v_old ± ε) − R)²), around the values of the time the rollouts were drawn."""
    near = torch.clamp(values, old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


@dataclass(frozen=True)
class PPO(PolicyObjective):
    """kl_coefficient: β of the penalty −β (log π − log π_ref) in every token's reward. kl_target: the divergence of a
    reply, summed over its tokens, that β is steered to (Ziegler et al., section 2.2); None: β stays. kl_horizon: the
    replies over which it is; the authors' 10,000 is for a million, and leaves β as it is in a run of a few thousand.

    clip, value_clip: how far a ratio and a value may move in one iteration; discount, decay: γ and λ of the advantages;
    value_weight: of the value loss. whiten_rewards: variance 1 for the rewards of an iteration, its mean kept.
    """

    kl_coefficient: float = 0.05
    kl_target: float | None = None
    kl_horizon: float = 300.0
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    discount: float = 1.0
    decay: float = 0.95
    whiten_rewards: bool = False

    name: ClassVar[str] = "ppo"
    needs_values: ClassVar[bool] = True
    adam_epsilon: ClassVar[float] = 1e-5  # of the authors' code, without which the first steps are too long

    def __post_init__(self) -> None:
        target = self.kl_target
        check_setting("kl_coefficient", self.kl_coefficient, self.kl_coefficient >= 0, "0 or more")
        check_setting("kl_target", target, target is None or target > 0, "a number above 0, or None")
        check_setting("kl_horizon", self.kl_horizon, self.kl_horizon > 0, "a number above 0")
        check_setting("clip", self.clip, 0 < self.clip < 1, "between 0 and 1")
        check_setting("value_clip", self.value_clip, self.value_clip > 0, "a number above 0")
        check_setting("value_weight", self.value_weight, self.value_weight >= 0, "0 or more")
        check_setting("discount", self.discount, 0 < self.discount <= 1, "above 0, at most 1")
        check_setting("decay", self.decay, 0 <= self.decay <= 1, "from 0 to 1")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def advantages(self, batch: Batch, history: Sequence[dict[str, float]]) -> Advantages:
        coefficient = self.coefficient(history, len(batch.scores))
        rewards = token_rewards(batch.scores, batch.kl, batch.mask, kl_coefficient=coefficient)
        if self.whiten_rewards:
            rewards = whiten(rewards, batch.mask, keep_mean=True)
        advantages, returns = generalised_advantages(
            rewards, batch.values, batch.mask, discount=self.discount, decay=self.decay
        )
        errors, spread = (returns - batch.values)[batch.mask], returns[batch.mask]
        explained = 1 - float(errors.var(correction=0) / spread.var(correction=0).clamp(min=1e-12))
        metrics = {"kl_coefficient": coefficient, "value_explained_variance": explained}
        return Advantages(whiten(advantages, batch.mask), returns, metrics)

    def coefficient(self, history: Sequence[dict[str, float]], replies: int) -> float:
        """β of the iteration that begins: the last one's times 1 + clip(KL/target − 1, ±0.2) · replies/horizon, at most
        once the horizon."""
        if not history:
            return self.kl_coefficient
        last = history[-1]
        if self.kl_target is None:
            return last["kl_coefficient"]
        error = max(-0.2, min(0.2, last["kl"] / self.kl_target - 1))
        return last["kl_coefficient"] * (1 + error * min(replies / self.kl_horizon, 1.0))

    def loss(self, scores: ActorCriticScores, examples: Sequence[Experience], window: Window) -> tuple[Tensor, Metrics]:
        old, advantages, values, returns = (
            joined(examples, field, scores.logprobs) for field in ("logprobs", "advantages", "values", "returns")
        )
        ratio = (scores.logprobs - old).exp()
        policy = clipped_surrogate(ratio, advantages, below=self.clip, above=self.clip).sum() / window.tokens
        value = clipped_value_loss(scores.values, values, returns, clip=self.value_clip).sum() / window.tokens
        metrics = ratio_metrics(ratio, advantages, below=self.clip, above=self.clip, count=window.tokens)
        metrics |= {"policy_loss": policy.detach(), "value_loss": value.detach()}
        return policy + self.value_weight * value, metrics
