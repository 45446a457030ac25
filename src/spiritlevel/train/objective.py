"""What a training method is: how its examples lie in forks, and its loss. The loop is shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from spiritlevel.data import Record
from spiritlevel.models import Fork, LocalModel

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Example:
    """A fork to train on.

    question: what the reference model is to score for it, if anything; reference: its answer, the log π_ref(y|x) of
    each continuation of the question. kind: of which every batch is to have its share.
    """

    fork: Fork
    reference: tuple[float, ...] = ()
    kind: str = ""
    question: Fork | None = None


@dataclass(frozen=True)
class Window:
    """Counts over one optimiser step, all micro-batches of all processes together.

    Every loss is a sum divided by these, so that gradients do not depend on how a step was cut into
    micro-batches. first_tokens: tokens of the first (chosen) continuations; tokens, continuations: of all; kl: what a
    method has estimated over the whole step before its first micro-batch.
    """

    examples: int
    first_tokens: int
    tokens: int = 0
    continuations: int = 0
    kl: float = 0.0

    @classmethod
    def over(cls, examples: Sequence[Example]) -> Window:
        forks = [example.fork for example in examples]
        return cls(
            examples=len(forks),
            first_tokens=sum(len(fork.continuations[0]) for fork in forks),
            tokens=sum(fork.scored for fork in forks),
            continuations=sum(len(fork.continuations) for fork in forks),
        )


class Objective(ABC):
    """One file in `train/objectives/` each. Losses and metrics of a step's micro-batches add up."""

    name: ClassVar[str]
    adam_epsilon: ClassVar[float] = 1e-8

    def window(self, model: LocalModel, examples: Sequence[Example]) -> Window:
        """What all micro-batches of a step must know of each other."""
        return Window.over(examples)

    @abstractmethod
    def loss(self, scores: Any, examples: Sequence[Any], window: Window) -> tuple[Tensor, Metrics]:
        """scores: what `model.score` says of the forks of these examples, one micro-batch of the step."""


class RecordObjective(Objective):
    """A method that learns from a file of records, collected before. reads: the kinds of records it takes."""

    reads: ClassVar[tuple[type[Record], ...]]

    @abstractmethod
    def examples(self, records: Sequence[Any], model: LocalModel) -> list[Example]:
        """The records as forks, still without what the reference says of them."""
