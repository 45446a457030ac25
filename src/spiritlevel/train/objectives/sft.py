"""Supervised fine-tuning on demonstrations or preferred replies: the loss is on completion tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spiritlevel.data import Demonstration, Preference
from spiritlevel.models import Fork, ForkScores, LocalModel
from spiritlevel.train.objective import Example, Metrics, RecordObjective, Window


@dataclass(frozen=True)
class SFT(RecordObjective):
    """−Σ log π(y_t|x, y_<t) over all completion tokens of the step, divided by their number."""

    name: ClassVar[str] = "sft"
    reads = (Demonstration, Preference)

    def examples(self, records: Sequence[Demonstration | Preference], model: LocalModel) -> list[Example]:
        return [Example(self.fork(record, model), kind=record.source) for record in records]

    def fork(self, record: Demonstration | Preference, model: LocalModel) -> Fork:
        text, finished = record.taught
        return Fork(model.prompt_tokens(record.chat), (model.reply_tokens(text, finished=finished),))

    def loss(self, scores: ForkScores, examples: Sequence[Example], window: Window) -> tuple[Tensor, Metrics]:
        nll = -scores.logprobs.sum() / window.first_tokens
        return nll, {"nll": nll.detach()}
