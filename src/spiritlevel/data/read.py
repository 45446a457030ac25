"""Reading a file of records whose kind is told by its columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from spiritlevel.chat import Chat
from spiritlevel.data.demonstration import Demonstration
from spiritlevel.data.feedback import Feedback
from spiritlevel.data.preference import Preference
from spiritlevel.data.ranking import Ranking
from spiritlevel.data.record import Record, present, read_rows, validate_rows
from spiritlevel.errors import SpiritLevelError

KINDS: tuple[type[Record], ...] = (Preference, Demonstration, Feedback, Ranking)


def read_records(path: Path, kinds: Sequence[type[Record]] = KINDS) -> Sequence[Record]:
    """The records of a JSONL or Parquet file, all of the kind that the columns of its first row tell.

    Raises SpiritLevelError if that is none of `kinds`, or naming the line and the field of a record that is not right.
    """
    rows = read_rows(path)
    kind = kind_of(rows[0][1]) or kinds[0]
    if kind not in kinds:
        raise SpiritLevelError(
            f"holds {kinds_of([kind])}, not {kinds_of(kinds)}",
            where=str(path),
            remedy="; ".join(one.columns for one in kinds) + ".",
        )
    return validate_rows(path, rows, kind)


def kinds_of(kinds: Sequence[type[Record]]) -> str:
    """In words: "preferences or rankings"."""
    return " or ".join("feedback" if kind is Feedback else f"{kind.__name__.lower()}s" for kind in kinds)


def kind_of(row: Any) -> type[Record] | None:
    """What the columns of a row tell, those that are null left out; None if they tell nothing.

    Two replies that are compared come first: such files often hold the better one again, as `messages`.
    """
    columns = set(present(row)) if isinstance(row, dict) else set()
    if {"chosen", "rejected"} <= columns:
        return Preference
    if "completions" in columns:
        return Ranking
    if "label" in columns:
        return Feedback
    if columns & {"completion", "messages"}:
        return Demonstration
    return Preference if columns & {"chosen", "rejected"} else None


class Asked(Record):
    """A prompt alone: what a policy is to answer."""

    columns: ClassVar[str] = "A prompt is a row with `prompt`, a string or messages with role and content"


def read_prompts(path: Path) -> list[Chat]:
    """The prompts of a JSONL or Parquet file of rows that have a `prompt`, whatever else, each once, in order."""
    records = validate_rows(path, read_rows(path), Asked)
    return list({str(record.chat): record.chat for record in records}.values())
