"""What every training record has: a prompt, a reply to learn, where they come from, and a row in a file.

JSONL and Parquet hold the same rows, with TRL's columns: TRL trains on a file written here as it is, and a file written
for TRL is read here as it is if it has a `prompt`, and strings or messages of role and content alone. A prompt that is
implied, or a message with tool calls, is an error: nothing is left out of what is trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from spiritlevel.chat import Chat
from spiritlevel.data.parquet import read_parquet, require_pyarrow, write_parquet
from spiritlevel.errors import SpiritLevelError
from spiritlevel.store import digest_json, read_jsonl, write_jsonl

Source = Literal["sampled", "charter", "example", "helpful", "document", "person", "other"]
Row = tuple[int, Any]
_COMMON = ("rule", "source", "author", "why", "provenance")


class Turn(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str


def _from_person(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _from_assistant(value: object) -> object:
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else value


def _not_empty(prompt: tuple[Turn, ...]) -> tuple[Turn, ...]:
    if not prompt:
        raise ValueError("is empty")
    return prompt


def _one_reply(reply: tuple[Turn, ...]) -> tuple[Turn, ...]:
    if len(reply) != 1 or reply[0].role != "assistant":
        raise ValueError("must be one assistant message (or a string)")
    if not reply[0].content.strip():
        raise ValueError("is empty")
    return reply


Prompt = Annotated[tuple[Turn, ...], BeforeValidator(_from_person), AfterValidator(_not_empty)]
ReplyTurns = Annotated[tuple[Turn, ...], BeforeValidator(_from_assistant), AfterValidator(_one_reply)]


class Record(BaseModel):
    """rule: the charter rule it teaches; source: where the reply to learn comes from; author: the person, model,
    charter or document that gave it; why: one line for a reader; provenance: anything that leads back to its origin.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
    columns: ClassVar[str]  # said when a row is not such a record

    prompt: Prompt
    rule: str | None = None
    source: Source = "other"
    author: str = ""
    why: str = ""
    provenance: dict[str, Any] = {}

    @property
    def chat(self) -> Chat:
        return [{"role": turn.role, "content": turn.content} for turn in self.prompt]

    @property
    def digest(self) -> str:
        return digest_json(self.model_dump(mode="json"))

    def row(self) -> dict[str, Any]:
        """As it stands in a file: what is trained on first."""
        row = self.model_dump(mode="json")
        return row | {name: row.pop(name) for name in _COMMON}


Kind = TypeVar("Kind", bound=Record)


def read_rows(path: Path) -> list[Row]:
    """(number, row) of JSONL or Parquet (by suffix). Raises SpiritLevelError if there is none or it can't be read."""
    rows = _kept_rows(path) if path.suffix == ".parquet" else read_jsonl(path)
    if not rows:
        raise SpiritLevelError("holds no records", where=str(path))
    return rows


def validate_rows(path: Path, rows: Iterable[Row], kind: type[Kind]) -> list[Kind]:
    """A field that is null counts as left out. Raises SpiritLevelError naming the file, the line and the field."""
    remedy = f"{kind.columns}; its other fields may be left out."
    records = []
    for number, row in rows:
        try:
            records.append(kind.model_validate(present(row)))
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(str(part) for part in fault["loc"])
            message = fault["msg"].removeprefix("Value error, ")
            problem = f"{field}: {message}" if field else message
            raise SpiritLevelError(problem, where=f"{path}:{number}", remedy=remedy) from None
    return records


def present(row: Any) -> Any:
    """The columns of a row that are not null: a Parquet file has all columns in every row."""
    return {name: value for name, value in row.items() if value is not None} if isinstance(row, dict) else row


def check_writable(path: Path) -> None:
    """Raises SpiritLevelError if what `write_rows` needs for such a file is not installed."""
    if path.suffix == ".parquet":
        require_pyarrow()


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write JSONL or Parquet (by suffix), whole or not at all."""
    write_rows(path, [record.row() for record in records])


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """The same for rows as they are."""
    if path.suffix == ".parquet":
        write_parquet(path, [_as_columns(row) for row in rows])
    else:
        write_jsonl(path, map(plain, rows))


def plain(row: Any) -> Any:
    """What JSON knows as it is, anything else (a date from Parquet) as text."""
    return json.loads(json.dumps(row, default=str))


def _as_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A column of free-form objects has no Parquet type: it travels as JSON text."""
    given = row.get("provenance")
    return row | {"provenance": json.dumps(given, default=str)} if isinstance(given, dict) else row


def _kept_rows(path: Path) -> list[Row]:
    rows = read_parquet(path)
    for row in rows:
        if isinstance(row.get("provenance"), str):
            # What is not ours is left as it is, and told by the validation.
            with suppress(ValueError, RecursionError):
                row["provenance"] = json.loads(row["provenance"])
    return list(enumerate(rows, start=1))
