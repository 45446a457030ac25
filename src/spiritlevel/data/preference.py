"""Preference records: TRL's columns (`prompt`, `chosen`, `rejected`), plus who, why and under which rule.

JSONL and Parquet hold the same rows. TRL trains on a file written here as it is; a file written for TRL
(plain strings or messages) is read here as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from spiritlevel.chat import Chat
from spiritlevel.errors import SpiritLevelError
from spiritlevel.store import atomic_path, digest_json, read_jsonl, write_jsonl

Source = Literal["sampled", "charter", "example", "helpful", "person", "other"]


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Preference(BaseModel):
    """One prompt, the reply that was preferred and the one that was not.

    rule: the charter rule it teaches; source: where `chosen` comes from; author: the person, model or
    charter that chose; why: one line for a reader; chosen_finished, rejected_finished: False for a reply cut
    at its token limit, which is then trained without an end token; probability: that `chosen` is the better one, as
    its author sees it; margin: by how much. Reward models read these two.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    rule: str | None = None
    source: Source = "other"
    author: str = ""
    why: str = ""
    provenance: dict[str, Any] = {}
    chosen_finished: bool = True
    rejected_finished: bool = True
    probability: float = Field(1.0, ge=0.0, le=1.0)
    margin: float = Field(0.0, ge=0.0, allow_inf_nan=False)

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_as_chat(cls, value: object) -> object:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @field_validator("chosen", "rejected", mode="before")
    @classmethod
    def _reply_as_chat(cls, value: object) -> object:
        return [{"role": "assistant", "content": value}] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Preference:
        if not self.prompt:
            raise ValueError("`prompt` is empty")
        for name, reply in (("chosen", self.chosen), ("rejected", self.rejected)):
            if len(reply) != 1 or reply[0].role != "assistant":
                raise ValueError(f"`{name}` must be one assistant message (or a string)")
            if not reply[0].content.strip():
                raise ValueError(f"`{name}` is empty")
        if self.chosen[0].content == self.rejected[0].content:
            raise ValueError("`chosen` and `rejected` are the same text: there is nothing to learn from it")
        return self

    @classmethod
    def of(cls, prompt: str, chosen: str, rejected: str, **fields: Any) -> Preference:
        """From plain strings."""
        return cls.model_validate({"prompt": prompt, "chosen": chosen, "rejected": rejected, **fields})

    @property
    def chat(self) -> Chat:
        return [{"role": turn.role, "content": turn.content} for turn in self.prompt]

    @property
    def chosen_text(self) -> str:
        return self.chosen[0].content

    @property
    def rejected_text(self) -> str:
        return self.rejected[0].content

    @property
    def digest(self) -> str:
        return digest_json(self.model_dump(mode="json"))


def read_preferences(path: Path) -> list[Preference]:
    """Read JSONL or Parquet (by suffix). Raises SpiritLevelError naming the file, the line and the field."""
    rows = _read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path)
    records = []
    for number, row in rows:
        try:
            records.append(Preference.model_validate(row))
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(str(part) for part in fault["loc"])
            message = fault["msg"].removeprefix("Value error, ")
            raise SpiritLevelError(
                f"{field}: {message}" if field else message,
                where=f"{path}:{number}",
                remedy="A preference has `prompt`, `chosen`, `rejected`: strings, or messages with role and content;"
                " its other fields may be left out.",
            ) from None
    if not records:
        raise SpiritLevelError("holds no records", where=str(path))
    return records


def check_writable(path: Path) -> None:
    """Raises SpiritLevelError if what `write_preferences` needs for such a file is not installed."""
    if path.suffix == ".parquet":
        _pyarrow()


def write_preferences(path: Path, records: Sequence[Preference]) -> None:
    """Write JSONL or Parquet (by suffix), whole or not at all."""
    rows = [record.model_dump(mode="json") for record in records]
    if path.suffix == ".parquet":
        _write_parquet(path, rows)
    else:
        write_jsonl(path, rows)


def _read_parquet(path: Path) -> Iterable[tuple[int, Any]]:
    pyarrow = _pyarrow()
    if not path.exists():
        raise SpiritLevelError("there is no such file", where=str(path))
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SpiritLevelError(f"not a readable Parquet file: {error}", where=str(path)) from None
    for row in rows:
        if isinstance(row.get("provenance"), str):
            # What is not ours is left as it is, and told by the validation.
            with suppress(ValueError, RecursionError):
                row["provenance"] = json.loads(row["provenance"])
    return enumerate(rows, start=1)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow = _pyarrow()
    # A column of free-form objects has no Parquet type: it travels as JSON text.
    table = pyarrow.Table.from_pylist([row | {"provenance": json.dumps(row["provenance"])} for row in rows])
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise SpiritLevelError(
            "reading and writing Parquet needs pyarrow",
            remedy="pip install 'spiritlevel[parquet]', or use JSONL.",
        ) from None
    return pyarrow
