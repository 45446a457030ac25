"""Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290), with an NLL term on the chosen
reply (Pang et al. 2024, arXiv:2404.19733)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from spiritlevel.data import Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, ForkScores, LocalModel
from spiritlevel.train.objective import Example, Metrics, Window

OPENING_TOKENS = 4


def dpo_loss(
    policy_chosen: Float[Tensor, " pairs"],
    policy_rejected: Float[Tensor, " pairs"],
    reference_chosen: Float[Tensor, " pairs"],
    reference_rejected: Float[Tensor, " pairs"],
    *,
    beta: float,
) -> Float[Tensor, " pairs"]:
    """−log σ(β h), h = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)  (eq. 7 of the paper).

    Arguments are summed log-probabilities. At the reference the loss is ln 2.
    """
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -logsigmoid(beta * margin)


@dataclass(frozen=True)
class DPO:
    """beta: how closely to stay to the reference. nll_weight: of the chosen reply's mean token loss, which
    keeps its likelihood from falling together with the rejected one's; 0 is the paper's DPO.

    opening_weight: how often each of the first `OPENING_TOKENS` tokens counts in that mean. There a reply takes its
    stance, and what makes a refusal is decided (Qi et al. 2024, arXiv:2406.05946); the other tokens mostly follow.

    margin_tokens: so many tokens of each reply, from the first on, count in the preference term; None is the paper's
    DPO, all. Where two replies differ in their stance, the margin of whole replies is soon won by the words that
    follow, and the term then no longer teaches how to begin. What is wrong further on it does not see. The metrics
    (margin, accuracy, rewards) are of the same tokens.
    """

    beta: float
    nll_weight: float = 0.0
    opening_weight: float = 1.0
    margin_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.margin_tokens is not None and self.margin_tokens < 1:
            raise SpiritLevelError(f"margin_tokens is {self.margin_tokens}", remedy="Give at least 1, or None for all.")

    name: ClassVar[str] = "dpo"
    summary: ClassVar[str] = "Direct Preference Optimization (arXiv:2305.18290), with an optional NLL term"

    def fork(self, record: Preference, model: LocalModel) -> Fork:
        chosen = model.reply_tokens(record.chosen_text, finished=record.chosen_finished)
        rejected = model.reply_tokens(record.rejected_text, finished=record.rejected_finished)
        return Fork(model.prompt_tokens(record.chat), (chosen, rejected[: self.margin_tokens]))

    def reference_fork(self, fork: Fork) -> Fork | None:
        return Fork(fork.prompt, tuple(reply[: self.margin_tokens] for reply in fork.continuations))

    def loss(self, scores: ForkScores, examples: Sequence[Example], window: Window) -> tuple[Tensor, Metrics]:
        chosen, rejected = scores.sums(self.margin_tokens).view(-1, 2).T
        reference = torch.tensor([example.reference for example in examples], dtype=torch.float64)
        ref_chosen, ref_rejected = reference.to(chosen).T
        preference = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=self.beta).sum() / window.examples
        all_of_chosen, opening = (scores.sums(first)[::2].sum() for first in (None, OPENING_TOKENS))
        nll = -(all_of_chosen + (self.opening_weight - 1) * opening) / window.first_tokens
        with torch.no_grad():
            reward_chosen, reward_rejected = (
                self.beta * (chosen - ref_chosen),
                self.beta * (rejected - ref_rejected),
            )
            margin = reward_chosen - reward_rejected
            metrics = {
                "dpo": preference.detach(),
                "nll": nll.detach(),
                "margin": margin.sum() / window.examples,
                "accuracy": (margin > 0).to(margin).sum() / window.examples,
                "reward_chosen": reward_chosen.sum() / window.examples,
                "reward_rejected": reward_rejected.sum() / window.examples,
            }
        return preference + self.nll_weight * nll, metrics
