"""Rows that say the same: exactly, and nearly.

Two rows are near duplicates if each of their parts (what came before the question, the question, chosen, rejected) has
at least `threshold` of its shingles in common (Jaccard; Broder 1997, "On the resemblance and containment of
documents"). All parts must agree: rows that share a long system message and differ in their questions, or in their
replies, say two things, and A > B is no duplicate of B > A. MinHash with locality-sensitive hashing only proposes
pairs; each is then verified on the shingles themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from spiritlevel.data.words import SIGNS
from spiritlevel.errors import SpiritLevelError

SIMILAR = 0.8
SHINGLE_WORDS = 3
# A pair at 0.8 is proposed with probability 1 − (1 − 0.8^5)^25 > 0.9999, one at 0.4 with 0.23.
_BANDS, _ROWS_A_BAND = 25, 5
# Punctuation counts, since 2 + 2 is not 2 - 2.
_WORD = re.compile(rf"[{SIGNS}]|[^\W{SIGNS}]+|[^\w\s]")

Record = tuple[str, ...]


@dataclass(frozen=True)
class Duplicate:
    """`index` says what `of`, the first of its group, says. `like` is the member of the group that it is most like, and
    similarity that of the part in which the two differ most; exact: they are the same but for white space."""

    index: int
    of: int
    like: int
    similarity: float
    exact: bool = False


def find_duplicates(
    records: Sequence[Record], threshold: float = SIMILAR, on_progress: Callable[[int], None] | None = None
) -> list[Duplicate]:
    """All but the first of each group of records that are linked by likeness, in order.

    The groups do not depend on the order of the records; which of a group is its first does.
    """
    first: dict[Record, int] = {}
    exact: dict[int, int] = {}
    for index, record in enumerate(records):
        key = tuple(" ".join(part.split()) for part in record)
        if key in first:
            exact[index] = first[key]
        first.setdefault(key, index)
        if index in exact and on_progress is not None:
            on_progress(1)
    distinct = list(first.values())
    linked = near_pairs([records[index] for index in distinct], threshold, on_progress)
    near = _grouped([(distinct[one], distinct[other], similarity) for one, other, similarity in linked])
    groups = {duplicate.index: duplicate.of for duplicate in near}
    same = [Duplicate(index, groups.get(of, of), of, 1.0, exact=True) for index, of in exact.items()]
    return sorted([*near, *same], key=lambda duplicate: duplicate.index)


def near_pairs(
    records: Sequence[Record], threshold: float = SIMILAR, on_progress: Callable[[int], None] | None = None
) -> list[tuple[int, int, float]]:
    """(earlier, later, similarity) of every two records that are alike, sorted.

    The similarity is that of the part that differs most; it is 1 where only case or white space differs. The first part
    is compared and proposes nothing: a system message that all records have would propose every two of them.
    """
    sketch, index_type = _datasketch()
    blank = sketch(num_perm=_BANDS * _ROWS_A_BAND, seed=1)
    index = index_type(num_perm=_BANDS * _ROWS_A_BAND, params=(_BANDS, _ROWS_A_BAND))
    found = []
    for later, record in enumerate(records):
        minhash = blank.copy()
        # Tagged with its part: of the union at least as much agrees as of the part that agrees least.
        tagged = (f"{place} {shingle}" for place, part in enumerate(record[1:]) for shingle in shingles(part))
        minhash.update_batch([each.encode() for each in tagged])
        for earlier in index.query(minhash):
            differing = [both for both in zip(records[earlier], record, strict=True) if both[0] != both[1]]
            similarity = min((jaccard(shingles(one), shingles(other)) for one, other in differing), default=1.0)
            if similarity >= threshold:
                found.append((earlier, later, similarity))
        index.insert(later, minhash)
        if on_progress is not None:
            on_progress(1)
    return sorted(found)


@lru_cache(maxsize=2048)  # those of all rows would take ten times the memory of the rows
def shingles(text: str) -> frozenset[str]:
    """Every `SHINGLE_WORDS` words in a row, without case; all of a text that has fewer."""
    words = _WORD.findall(text.casefold())
    count = max(1, len(words) - SHINGLE_WORDS + 1) if words else 0
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(count))


def jaccard(one: frozenset[Hashable], other: frozenset[Hashable]) -> float:
    """The share of their union that two sets have in common; 1 if both are empty."""
    return len(one & other) / len(one | other) if one or other else 1.0


def _grouped(pairs: Sequence[tuple[int, int, float]]) -> list[Duplicate]:
    """Each record that is linked to an earlier one, over others or not, with the first of its group."""
    root: dict[int, int] = {}

    def first(index: int) -> int:
        while root.setdefault(index, index) != index:
            root[index] = index = root[root[index]]
        return index

    best: dict[int, tuple[float, int]] = {}
    for earlier, later, similarity in pairs:
        one, other = first(earlier), first(later)
        root[max(one, other)] = min(one, other)
        for index, neighbour in ((earlier, later), (later, earlier)):
            best[index] = max(best.get(index, (0.0, 0)), (similarity, -neighbour))
    found = [index for index in sorted(root) if first(index) != index]
    return [Duplicate(index, first(index), -best[index][1], best[index][0]) for index in found]


def _datasketch() -> tuple[Any, Any]:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise SpiritLevelError(
            "finding near duplicates needs datasketch", remedy="pip install 'spiritlevel[curation]'"
        ) from None
    return MinHash, MinHashLSH
