"""Contrastive Preference Optimization (Xu et al. 2024, arXiv:2401.08417): DPO without a reference, plus NLL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from spiritlevel.train.objectives.dpo import dpo_loss
from spiritlevel.train.objectives.pairwise import Pairs, Pairwise


@dataclass(frozen=True)
class CPO(Pairwise):
    """−log σ(β log π(y_w|x)/π(y_l|x)) + nll_weight · NLL(y_w), eq. 5 and 6; the paper weights both alike."""

    nll_weight: float = 1.0

    name: ClassVar[str] = "cpo"
    needs_reference: ClassVar[bool] = False

    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        return dpo_loss(pairs.margin, beta=self.beta)
