"""Rows that judge the same thing: A > B and B > A on one prompt, or one reply that is liked here and not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spiritlevel.data.trl import TrlRow


@dataclass(frozen=True)
class Comparison:
    """All verdicts on one question. one, other: the indices of the rows that say the one and the other thing."""

    one: tuple[int, ...]
    other: tuple[int, ...]

    @property
    def contested(self) -> bool:
        return bool(self.one and self.other)

    @property
    def outvoted(self) -> tuple[int, ...]:
        """The rows of the smaller side; of both, if they are equal: nothing says who is right."""
        if len(self.one) == len(self.other):
            return tuple(sorted(self.one + self.other))
        return min(self.one, self.other, key=len)


def comparisons(rows: Sequence[TrlRow]) -> list[Comparison]:
    """The rows by what they judge, texts compared without white space at their ends and between words.

    A question is a prompt with two replies, or with one that is labelled good or bad. Demonstrations judge nothing,
    nor does a row whose two replies are the same.
    """
    sides: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for index, row in enumerate(rows):
        before, asked, chosen, rejected = (" ".join(part.split()) for part in row.parts)
        if row.chosen is not None and row.rejected is not None and chosen != rejected:
            low, high = sorted((chosen, rejected))
            sides.setdefault((before, asked, low, high), ([], []))[chosen == high].append(index)
        elif row.shape.startswith("unpaired"):
            sides.setdefault((before, asked, chosen or rejected), ([], []))[row.rejected is not None].append(index)
    return [Comparison(tuple(one), tuple(other)) for one, other in sides.values()]
