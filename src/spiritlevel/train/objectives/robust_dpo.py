"""Robust DPO: an unbiased DPO loss under random label flips (Chowdhury et al. 2024, arXiv:2403.00409)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from spiritlevel.errors import check_setting
from spiritlevel.train.objectives.pairwise import Pairs, Pairwise


def robust_dpo_loss(margin: Float[Tensor, " pairs"], *, beta: float, flipped: float) -> Float[Tensor, " pairs"]:
    """[−(1−ε) log σ(β h) + ε log σ(−β h)] / (1−2ε), eq. 12: its mean over flips of probability ε is DPO's loss."""
    return (-(1 - flipped) * logsigmoid(beta * margin) + flipped * logsigmoid(-beta * margin)) / (1 - 2 * flipped)


@dataclass(frozen=True)
class RobustDPO(Pairwise):
    """flipped: the share of pairs whose labels are the wrong way round, from 0 (DPO) to below 0.5."""

    flipped: float = 0.1

    name: ClassVar[str] = "robust-dpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("flipped", self.flipped, 0 <= self.flipped < 0.5, "a share from 0 to below 0.5")

    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        return robust_dpo_loss(pairs.margin, beta=self.beta, flipped=self.flipped)
