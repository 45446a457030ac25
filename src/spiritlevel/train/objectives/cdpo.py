"""Conservative DPO: DPO with smoothed labels (Mitchell 2023, https://ericmitchell.ai/cdpo.pdf)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from spiritlevel.errors import check_setting
from spiritlevel.train.objectives.pairwise import Pairs, Pairwise


def cdpo_loss(margin: Float[Tensor, " pairs"], *, beta: float, flipped: float) -> Float[Tensor, " pairs"]:
    """−(1−ε) log σ(β h) − ε log σ(−β h), ε = `flipped`. The margin has a finite optimum: σ(β h) = 1 − ε."""
    return -(1 - flipped) * logsigmoid(beta * margin) - flipped * logsigmoid(-beta * margin)


@dataclass(frozen=True)
class ConservativeDPO(Pairwise):
    """flipped: the share of pairs whose labels are taken to be the wrong way round, from 0 (DPO) to below 0.5."""

    flipped: float = 0.1

    name: ClassVar[str] = "cdpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("flipped", self.flipped, 0 <= self.flipped < 0.5, "a share from 0 to below 0.5")

    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        return cdpo_loss(pairs.margin, beta=self.beta, flipped=self.flipped)
