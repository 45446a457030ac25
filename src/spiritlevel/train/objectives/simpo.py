"""Simple Preference Optimization (Meng et al. 2024, arXiv:2405.14734): no reference, mean log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from spiritlevel.errors import check_setting
from spiritlevel.train.objectives.pairwise import Pairs, Pairwise


def simpo_loss(margin: Float[Tensor, " pairs"], *, beta: float, gamma: float) -> Float[Tensor, " pairs"]:
    """−log σ(β m − γ), eq. 6, m the difference of the two replies' mean log-probabilities a token."""
    return -logsigmoid(beta * margin - gamma)


@dataclass(frozen=True)
class SimPO(Pairwise):
    """gamma: by how much β m is to be won; the paper takes β 2 to 2.5 and γ/β 0.3 to 0.8."""

    gamma: float = 1.0

    name: ClassVar[str] = "simpo"
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("gamma", self.gamma, self.gamma >= 0, "0 or more")

    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        return simpo_loss(pairs.a_token().margin, beta=self.beta, gamma=self.gamma)

    def rewards(self, pairs: Pairs) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        return super().rewards(pairs.a_token())
