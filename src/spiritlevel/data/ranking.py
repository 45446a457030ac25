"""Rankings: several replies to one prompt with scores, as raters or models give them."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from spiritlevel.chat import Chat
from spiritlevel.data.preference import Source, Turn


class Ranking(BaseModel):
    """scores: of each completion, the higher the better; equal ones are not told apart. The other fields as in
    `Preference`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: tuple[Turn, ...]
    completions: tuple[str, ...]
    scores: tuple[float, ...]
    rule: str | None = None
    source: Source = "other"
    author: str = ""
    why: str = ""
    provenance: dict[str, Any] = {}

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_as_chat(cls, value: object) -> object:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Ranking:
        if not self.prompt:
            raise ValueError("`prompt` is empty")
        if len(self.completions) != len(self.scores):
            raise ValueError(f"{len(self.completions)} completions have {len(self.scores)} scores")
        if not all(completion.strip() for completion in self.completions):
            raise ValueError("one of `completions` is empty")
        if not self.pairs:
            raise ValueError("no completion has a higher score than another: there is nothing to learn from it")
        return self

    @property
    def chat(self) -> Chat:
        return [{"role": turn.role, "content": turn.content} for turn in self.prompt]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) of every two replies whose scores differ."""
        order = sorted(range(len(self.scores)), key=lambda index: -self.scores[index])
        return [(i, j) for i, j in combinations(order, 2) if self.scores[i] > self.scores[j]]
