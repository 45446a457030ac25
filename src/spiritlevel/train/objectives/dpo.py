"""Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from spiritlevel.train.objectives.pairwise import Pairs, Pairwise


def dpo_loss(margin: Float[Tensor, " pairs"], *, beta: float) -> Float[Tensor, " pairs"]:
    """−log σ(β h), eq. 7 of the paper. At the reference the loss is ln 2."""
    return -logsigmoid(beta * margin)


@dataclass(frozen=True)
class DPO(Pairwise):
    """The paper's DPO; with `nll_weight` above 0 the loss of Pang et al. (arXiv:2404.19733)."""

    name: ClassVar[str] = "dpo"

    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        return dpo_loss(pairs.margin, beta=self.beta)
