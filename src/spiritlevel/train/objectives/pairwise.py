"""What all methods on pairs of replies have in common: how a pair lies in a fork, the NLL term, the metrics.

A method is then one pure function of the pairs. Notation, as in the papers: x the prompt, y_w the chosen and y_l the
rejected reply, π the policy, π_ref the reference; β h is the difference of the implicit rewards, with
h = log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from spiritlevel.data import Preference
from spiritlevel.errors import check_setting
from spiritlevel.models import Fork, ForkScores, LocalModel
from spiritlevel.train.objective import Example, Metrics, RecordObjective, Window

OPENING_TOKENS = 4


def pair_fork(record: Preference, model: LocalModel) -> Fork:
    """The prompt with the chosen and the rejected reply; one that was cut has no end token."""
    chosen = model.reply_tokens(record.chosen_text, finished=record.chosen_finished)
    rejected = model.reply_tokens(record.rejected_text, finished=record.rejected_finished)
    return Fork(model.prompt_tokens(record.chat), (chosen, rejected))


@dataclass(frozen=True)
class Pairs:
    """Summed log-probabilities of the chosen and the rejected replies of a batch, each [pairs].

    The reference's are zero where a method has none. tokens: how many each sum is over.
    """

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    ref_chosen: Float[Tensor, " pairs"]
    ref_rejected: Float[Tensor, " pairs"]
    chosen_tokens: Float[Tensor, " pairs"]
    rejected_tokens: Float[Tensor, " pairs"]

    @property
    def log_ratios(self) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """log π/π_ref of the chosen and of the rejected replies."""
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    @property
    def margin(self) -> Float[Tensor, " pairs"]:
        """h."""
        chosen, rejected = self.log_ratios
        return chosen - rejected

    def a_token(self) -> Pairs:
        """The same with means over tokens in place of sums."""
        return Pairs(
            self.chosen / self.chosen_tokens,
            self.rejected / self.rejected_tokens,
            self.ref_chosen / self.chosen_tokens,
            self.ref_rejected / self.rejected_tokens,
            torch.ones_like(self.chosen_tokens),
            torch.ones_like(self.rejected_tokens),
        )


@dataclass(frozen=True)
class Pairwise(RecordObjective):
    """beta: the scale of the implicit reward; the larger, the sooner a margin counts as won and the closer the policy
    stays to the reference.

    nll_weight: of the chosen replies' mean token loss, which keeps their likelihood from falling together with the
    rejected ones' (Pang et al. 2024, arXiv:2404.19733).

    opening_weight: how often each of the first `OPENING_TOKENS` tokens counts in that mean. There a reply takes its
    stance, and what makes a refusal is decided (Qi et al. 2024, arXiv:2406.05946); the other tokens mostly follow.

    margin_tokens: so many tokens of each reply, from the first on, count in the preference term; None is the papers',
    all. Where two replies differ in their stance, the margin of whole replies is soon won by the words that
    follow, and the term then no longer teaches how to begin. What is wrong further on it does not see. The metrics
    (margin, accuracy, rewards) are of the same tokens.
    """

    beta: float
    nll_weight: float = 0.0
    opening_weight: float = 1.0
    margin_tokens: int | None = None

    reads = (Preference,)
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_setting("beta", self.beta, self.beta > 0, "a number above 0")
        check_setting("nll_weight", self.nll_weight, self.nll_weight >= 0, "0 or more")
        check_setting("opening_weight", self.opening_weight, self.opening_weight >= 0, "0 or more")
        tokens = self.margin_tokens
        check_setting("margin_tokens", tokens, tokens is None or tokens >= 1, "at least 1, or None for all")

    @abstractmethod
    def preference(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """The loss of each pair, without the NLL term."""

    def rewards(self, pairs: Pairs) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """The implicit rewards of the chosen and of the rejected replies, for the metrics."""
        chosen, rejected = pairs.log_ratios
        return self.beta * chosen, self.beta * rejected

    def examples(self, records: Sequence[Preference], model: LocalModel) -> list[Example]:
        forks = [self.fork(record, model) for record in records]
        return [
            Example(fork, kind=record.source, question=self.question(fork))
            for record, fork in zip(records, forks, strict=True)
        ]

    def fork(self, record: Preference, model: LocalModel) -> Fork:
        whole = pair_fork(record, model)
        chosen, rejected = whole.continuations
        return Fork(whole.prompt, (chosen, rejected[: self.margin_tokens]))

    def question(self, fork: Fork) -> Fork | None:
        """What the reference is to score: the tokens that the preference term reads, if it needs them."""
        if not self.needs_reference:
            return None
        return Fork(fork.prompt, tuple(reply[: self.margin_tokens] for reply in fork.continuations))

    def loss(self, scores: ForkScores, examples: Sequence[Example], window: Window) -> tuple[Tensor, Metrics]:
        pairs = self._pairs(scores, examples)
        preference = self.preference(pairs).sum() / window.examples
        all_of_chosen, opening = (scores.sums(first)[::2].sum() for first in (None, OPENING_TOKENS))
        nll = -(all_of_chosen + (self.opening_weight - 1) * opening) / window.first_tokens
        with torch.no_grad():
            chosen, rejected = self.rewards(pairs)
            metrics = {
                self.name: preference.detach(),
                "nll": nll.detach(),
                "margin": (chosen - rejected).sum() / window.examples,
                "accuracy": (chosen > rejected).to(chosen).sum() / window.examples,
                "reward_chosen": chosen.sum() / window.examples,
                "reward_rejected": rejected.sum() / window.examples,
            }
        return preference + self.nll_weight * nll, metrics

    def _pairs(self, scores: ForkScores, examples: Sequence[Example]) -> Pairs:
        chosen, rejected = scores.sums(self.margin_tokens).view(-1, 2).T
        counts = scores.counts() if self.margin_tokens is None else scores.counts().clamp(max=self.margin_tokens)
        chosen_tokens, rejected_tokens = counts.to(chosen).view(-1, 2).T
        reference = [example.reference if self.needs_reference else (0.0, 0.0) for example in examples]
        ref_chosen, ref_rejected = torch.tensor(reference, dtype=torch.float64).to(chosen).T
        return Pairs(chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens)
