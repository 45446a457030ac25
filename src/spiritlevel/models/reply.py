"""What a model answered to one chat."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """`tokens` counts the generated tokens, 0 if unknown; `finished`: the model ended by itself."""

    text: str
    tokens: int
    finished: bool
