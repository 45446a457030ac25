"""What a data report is made of: figures, each with its meaning and what to do, and histograms, in sections."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spiritlevel.data.label_noise import Share
from spiritlevel.data.trl import TrlRow

Tone = Literal["good", "unsure", "bad", "plain"]

# A share of rows that is no accident any more.
NOTABLE = 0.01
# How many rows are named for a figure, and how much of each is shown.
NAMED, _SHOWN = 5, 120


@dataclass(frozen=True)
class Figure:
    """kind: a count, out of `of`; a share, with its 95% interval `low` to `high`; a number; or a fault, which is there
    (1) or not. value: None where the data can't tell. rows: the first places, each with the beginning of its prompt."""

    name: str
    title: str
    kind: Literal["count", "share", "number", "fault"]
    value: float | None
    tone: Tone
    meaning: str
    advice: str = ""
    of: int | None = None
    low: float | None = None
    high: float | None = None
    rows: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Histogram:
    """counts[i] of the values lie in [edges[i], edges[i + 1]), those beyond in the last. mark: where to draw a line."""

    title: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mark: float | None = None


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    figures: tuple[Figure, ...]
    charts: tuple[Histogram, ...] = ()


def count_of(name: str, title: str, rows: Sequence[TrlRow], of: int, meaning: str, advice: str) -> Figure:
    """Rows that something is the matter with."""
    tone = tone_of(len(rows), of)
    return Figure(name, title, "count", len(rows), tone, meaning, advice, of=of, rows=places(rows))


def share_of(name: str, title: str, share: Share | None, tone: Tone, meaning: str, advice: str) -> Figure:
    if share is None:
        return Figure(name, title, "share", None, "plain", meaning, advice)
    return Figure(name, title, "share", share.value, tone, meaning, advice, low=share.low, high=share.high)


def tone_of(count: float, of: float) -> Tone:
    return "good" if not count else "bad" if count >= NOTABLE * of else "unsure"


def places(rows: Iterable[TrlRow]) -> tuple[tuple[int, str], ...]:
    first = sorted(rows, key=lambda row: row.number)[:NAMED]
    return tuple((row.number, row.prompt_text[:_SHOWN]) for row in first)


def histogram(
    title: str, unit: str, values: Sequence[float], edges: tuple[float, ...], mark: float | None = None
) -> Histogram:
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(max(bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
    return Histogram(title, unit, edges, tuple(counts), mark)


def doubling_edges(longest: float) -> tuple[float, ...]:
    """0, 1, 2, 3, 4, 6, 8, 11, 16, …: twice as far every second edge, the last beyond `longest`."""
    edges, power = [0.0, 1.0], 2
    while edges[-1] <= longest:
        edge = float(round(2 ** (power / 2)))
        edges += [edge] if edge > edges[-1] else []
        power += 1
    return tuple(edges)
