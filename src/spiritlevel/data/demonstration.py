"""Demonstrations: a prompt and the reply to learn, with nothing to compare it to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from spiritlevel.chat import Chat
from spiritlevel.data.record import Record, ReplyTurns, read_rows, validate_rows, write_records


class Demonstration(Record):
    """A prompt and its completion, as in TRL's prompt-completion and conversational formats.

    Of `messages` the last is the completion and the others are the prompt: earlier replies are context and are not
    learnt. finished: False for a completion cut at its token limit, which is then trained without an end token.
    """

    columns: ClassVar[str] = (
        "A demonstration has `prompt` and `completion`, strings or messages with role and content; or `messages`,"
        " the last by the assistant"
    )

    completion: ReplyTurns
    finished: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_messages(cls, row: Any) -> Any:
        if not isinstance(row, dict) or row.get("messages") is None or row.get("completion") is not None:
            return row
        messages = row["messages"]
        if not isinstance(messages, (list, tuple)) or not messages:
            raise ValueError("`messages` must be a list of messages")
        return row | {"prompt": messages[:-1], "completion": messages[-1:]}

    @classmethod
    def of(cls, prompt: str | Chat, completion: str, **fields: Any) -> Demonstration:
        """From plain text, or a chat that the completion goes on."""
        return cls.model_validate({"prompt": prompt, "completion": completion, **fields})

    @property
    def completion_text(self) -> str:
        return self.completion[0].content

    @property
    def taught(self) -> tuple[str, bool]:
        """The reply that supervised training learns, and whether it is whole."""
        return self.completion_text, self.finished


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Read JSONL or Parquet (by suffix). Raises SpiritLevelError naming the file, the line and the field."""
    return validate_rows(path, read_rows(path), Demonstration)


def write_demonstrations(path: Path, records: Sequence[Demonstration]) -> None:
    """Write JSONL or Parquet (by suffix), whole or not at all."""
    write_records(path, records)
