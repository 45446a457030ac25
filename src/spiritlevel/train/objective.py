"""What a training method is: how its examples lie in forks, and its loss. The loop is shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from spiritlevel.data import Record
from spiritlevel.models import Fork, ForkScores, LocalModel

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Example:
    """A fork to train on; `reference` holds log π_ref(y|x) of each continuation of the objective's `reference_fork`.

    kind: of which every batch is to have its share.
    """

    fork: Fork
    reference: tuple[float, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Window:
    """Counts over one optimiser step, all its micro-batches together, in the one process that trains.

    Every loss is a sum divided by these, so that gradients do not depend on how a step was cut into
    micro-batches. first_tokens: tokens of the first (chosen) continuations.
    """

    examples: int
    first_tokens: int

    @classmethod
    def over(cls, examples: Sequence[Example]) -> Window:
        return cls(len(examples), sum(len(example.fork.continuations[0]) for example in examples))


class Objective(Protocol):
    """One file in `train/objectives/` each. Losses and metrics of a step's micro-batches add up."""

    name: ClassVar[str]

    def fork(self, record: Record, model: LocalModel) -> Fork: ...

    def reference_fork(self, fork: Fork) -> Fork | None:
        """What the reference is to score for this fork; None if nothing."""

    def loss(self, scores: ForkScores, examples: Sequence[Example], window: Window) -> tuple[Tensor, Metrics]: ...
