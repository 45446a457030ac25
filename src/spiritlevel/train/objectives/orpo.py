"""Odds Ratio Preference Optimization (Hong et al. 2024, arXiv:2403.07691): SFT and preference in one, no reference."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from spiritlevel.train.objectives.pairwise import Pairs, Pairwise


def orpo_loss(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"], *, beta: float
) -> Float[Tensor, " pairs"]:
    """−β log σ(log odds(y_w) − log odds(y_l)), eq. 7, odds = p/(1−p), of mean log-probabilities a token."""
    log_odds = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
    return -beta * logsigmoid(log_odds)


def log1mexp(log_p: Tensor) -> Tensor:
    """log(1 − p) from log p < 0, exact at both ends (Mächler 2012, "Accurately computing log(1 − exp(−|a|))").

    p = 1 is taken as the largest number below it, so that loss and gradient stay finite.
    """
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    near_one = log_p > -log(2)
    # Each branch sees only numbers that are safe for it: where() lets a nan through in the backward pass.
    first = torch.log(-torch.expm1(torch.where(near_one, log_p, -1.0)))
    second = torch.log1p(-torch.exp(torch.where(near_one, -1.0, log_p)))
    return torch.where(near_one, first, second)


@dataclass(frozen=True)
class ORPO(Pairwise):
    """beta: λ of the paper, the weight of the odds ratio beside the NLL of the chosen reply."""

    nll_weight: float = 1.0

    name: ClassVar[str] = "orpo"
    needs_reference: ClassVar[bool] = False

    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        means = pairs.a_token()
        return orpo_loss(means.chosen, means.rejected, beta=self.beta)

    def rewards(self, pairs: Pairs) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        return super().rewards(pairs.a_token())
