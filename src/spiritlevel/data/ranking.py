"""Rankings: several replies to one prompt with scores, as raters or models give them."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

from pydantic import FiniteFloat, model_validator

from spiritlevel.data.record import Record


class Ranking(Record):
    """scores: of each completion, the higher the better; equal ones are not told apart."""

    columns: ClassVar[str] = "A ranking has `prompt`, `completions` (strings) and `scores` (numbers, one a completion)"

    completions: tuple[str, ...]
    scores: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _makes_sense(self) -> Ranking:
        if len(self.completions) != len(self.scores):
            raise ValueError(f"{len(self.completions)} completions have {len(self.scores)} scores")
        if not all(completion.strip() for completion in self.completions):
            raise ValueError("one of `completions` is empty")
        if not self.pairs:
            raise ValueError("no completion has a higher score than another: there is nothing to learn from it")
        return self

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of every two completions whose scores differ."""
        order = sorted(range(len(self.scores)), key=lambda index: -self.scores[index])
        return [(i, j) for i, j in combinations(order, 2) if self.scores[i] > self.scores[j]]
