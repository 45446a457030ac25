"""Preference records: a prompt, the reply that was preferred and the one that was not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from spiritlevel.chat import user
from spiritlevel.data.record import Record, ReplyTurns, read_rows, validate_rows, write_records


class Preference(Record):
    """One prompt, the reply that was preferred and the one that was not.

    source, author: of the choice; chosen_finished, rejected_finished: False for a reply cut at its token limit, which
    is then trained without an end token; probability: that `chosen` is the better one, as its author sees it; margin:
    by how much. Reward models read these two.
    """

    columns: ClassVar[str] = (
        "A preference has `prompt`, `chosen`, `rejected`: strings, or messages with role and content"
    )

    chosen: ReplyTurns
    rejected: ReplyTurns
    chosen_finished: bool = True
    rejected_finished: bool = True
    probability: float = Field(1.0, ge=0.0, le=1.0)
    margin: float = Field(0.0, ge=0.0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _replies_alone(cls, row: Any) -> Any:
        """Some files repeat the prompt before each reply."""
        if not isinstance(row, dict):
            return row
        given = row.get("prompt")
        prompt = [user(given)] if isinstance(given, str) else given
        told = len(prompt) if isinstance(prompt, list) else 0
        replies = {name: row[name] for name in ("chosen", "rejected") if isinstance(row.get(name), list)}
        return row | {name: reply[told:] for name, reply in replies.items() if reply[:told] == prompt}

    @model_validator(mode="after")
    def _makes_sense(self) -> Preference:
        if self.chosen[0].content == self.rejected[0].content:
            raise ValueError("`chosen` and `rejected` are the same text: there is nothing to learn from it")
        return self

    @classmethod
    def of(cls, prompt: str, chosen: str, rejected: str, **fields: Any) -> Preference:
        """From plain strings."""
        return cls.model_validate({"prompt": prompt, "chosen": chosen, "rejected": rejected, **fields})

    @property
    def chosen_text(self) -> str:
        return self.chosen[0].content

    @property
    def rejected_text(self) -> str:
        return self.rejected[0].content

    @property
    def taught(self) -> tuple[str, bool]:
        """The reply that supervised training learns, and whether it is whole."""
        return self.chosen_text, self.chosen_finished


def read_preferences(path: Path) -> list[Preference]:
    """Read JSONL or Parquet (by suffix). Raises SpiritLevelError naming the file, the line and the field."""
    return validate_rows(path, read_rows(path), Preference)


def write_preferences(path: Path, records: Sequence[Preference]) -> None:
    """Write JSONL or Parquet (by suffix), whole or not at all."""
    write_records(path, records)
