"""Identity Preference Optimization (Azar et al. 2023, arXiv:2310.12036)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from spiritlevel.train.objectives.pairwise import Pairs, Pairwise


def ipo_loss(margin: Float[Tensor, " pairs"], *, beta: float) -> Float[Tensor, " pairs"]:
    """(h − 1/(2β))², eq. 17 with τ = β: a margin beyond 1/(2β) costs as much as one that falls short."""
    return (margin - 1 / (2 * beta)) ** 2


@dataclass(frozen=True)
class IPO(Pairwise):
    """average: h of mean log-ratios a token, as the authors intend and TRL does; False: of sums, as the original DPO
    code and OpenRLHF do. The same beta means something else in the two."""

    average: bool = True

    name: ClassVar[str] = "ipo"

    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        return ipo_loss((pairs.a_token() if self.average else pairs).margin, beta=self.beta)
