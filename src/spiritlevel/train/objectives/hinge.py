"""Hinge loss on the implicit rewards: SLiC (Zhao et al. 2023, arXiv:2305.10425) on DPO's margin, as RSO names it
(Liu et al. 2023, arXiv:2309.06657)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu

from spiritlevel.train.objectives.pairwise import Pairs, Pairwise


def hinge_loss(margin: Float[Tensor, " pairs"], *, beta: float) -> Float[Tensor, " pairs"]:
    """max(0, 1 − β h): a pair that is won by 1/β teaches nothing more."""
    return relu(1 - beta * margin)


@dataclass(frozen=True)
class Hinge(Pairwise):
    name: ClassVar[str] = "hinge"

    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        return hinge_loss(pairs.margin, beta=self.beta)
