"""From rewards to advantages: how much better a token or a reply was than expected. Pure functions of padded tensors.

`mask` is 1 where a row has a token, rows filled from the left; what lies beyond is never read.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_rewards(
    scores: Float[Tensor, " rows"],
    kl: Float[Tensor, "rows length"],
    mask: Bool[Tensor, "rows length"],
    *,
    kl_coefficient: float,
) -> Float[Tensor, "rows length"]:
    """R_t = −β·kl_t, and the score at the last real token (Ziegler et al. 2019, arXiv:1909.08593, eq. 2).

    kl: log π − log π_ref of each token.
    """
    rewards = torch.where(mask, -kl_coefficient * kl, 0.0)
    last = mask.sum(1) - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None])


def generalised_advantages(
    rewards: Float[Tensor, "rows length"],
    values: Float[Tensor, "rows length"],
    mask: Bool[Tensor, "rows length"],
    *,
    discount: float,
    decay: float,
) -> tuple[Float[Tensor, "rows length"], Float[Tensor, "rows length"]]:
    """Advantages and returns (Schulman et al. 2015, arXiv:1506.02438): δ_t = R_t + γ V_{t+1} − V_t with V = 0 after the
    last token, A_t = δ_t + γ λ A_{t+1}, return = A + V, before any whitening."""
    values = torch.where(mask, values, 0.0)
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], dim=1)
    deltas = torch.where(mask, rewards + discount * following - values, 0.0)
    advantages = torch.zeros_like(deltas)
    carried = deltas.new_zeros(len(deltas))
    for place in reversed(range(deltas.shape[1])):
        carried = deltas[:, place] + discount * decay * carried
        advantages[:, place] = carried
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(
    values: Float[Tensor, "rows length"], mask: Bool[Tensor, "rows length"], *, keep_mean: bool = False
) -> Float[Tensor, "rows length"]:
    """Variance 1 over all real tokens, and mean 0 unless it is kept (rewards keep it, advantages do not)."""
    real = values[mask]
    if len(real) < 2:
        return values
    mean, deviation = real.mean(), (real.var(correction=0) + 1e-8).sqrt()
    whitened = (values - mean) / deviation + (mean if keep_mean else 0.0)
    return torch.where(mask, whitened, 0.0)


def group_advantages(
    rewards: Float[Tensor, " rows"], group: Int[Tensor, " rows"], *, scale: bool
) -> Float[Tensor, " rows"]:
    """Reward less the mean of its prompt's samples, over their standard deviation (GRPO: Shao et al. 2024,
    arXiv:2402.03300) or not (Dr. GRPO: Liu et al. 2025, arXiv:2503.20783, which shows that it favours easy and hard
    prompts)."""
    centred = rewards - group_means(rewards, group)
    if not scale:
        return centred
    counts = torch.bincount(group)
    variance = centred.new_zeros(len(counts)).index_add(0, group, centred**2) / (counts - 1).clamp(min=1)
    return centred / (variance.sqrt() + 1e-4)[group]


def leave_one_out_advantages(rewards: Float[Tensor, " rows"], group: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Reward less the mean of the *other* samples of its prompt (RLOO: Kool et al. 2019; Ahmadian et al. 2024,
    arXiv:2402.14740): unbiased, since the baseline does not depend on the sample."""
    counts = torch.bincount(group)[group]
    return (rewards - group_means(rewards, group)) * counts / (counts - 1).clamp(min=1)


def group_means(values: Float[Tensor, " rows"], group: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    counts = torch.bincount(group)
    return (values.new_zeros(len(counts)).index_add(0, group, values) / counts)[group]
