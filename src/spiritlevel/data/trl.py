"""Rows of training data in TRL's formats, as they are: what can't be read is told by line, not fatal.

`preference.py` is strict, since training must not skip a record unnoticed; this reader is for looking at data that
somebody else made. A prompt that is only implied by `chosen` and `rejected` is split off where they part, message by
message, as TRL's `extract_prompt` does, and hh-rlhf's "\\n\\nHuman: …\\n\\nAssistant: …" is read as messages.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from spiritlevel.chat import Chat, assistant, user
from spiritlevel.data.preference import Preference
from spiritlevel.data.read import kind_of
from spiritlevel.data.record import read_rows, write_rows
from spiritlevel.errors import SpiritLevelError

_ROLES = {"system", "user", "assistant", "tool"}
_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class TrlRow:
    """One row: a prompt, and a reply to learn, a reply to avoid, or both.

    number: its line, or its place in a Parquet file or JSON array, from 1; raw: as it was read; shape: TRL's name of
    the format, and whether it holds messages or text. An unpaired row has `chosen` or `rejected` by its label, a
    demonstration has `chosen` alone: the last message of the assistant. So has plain text, after no prompt.
    """

    number: int
    raw: dict[str, Any]
    shape: str
    prompt: Chat
    chosen: str | None
    rejected: str | None

    @property
    def prompt_text(self) -> str:
        """The prompt with its roles, on lines."""
        return _told(self.prompt)

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """What was said before the question, the question, chosen and rejected; empty where there is none."""
        return _told(self.prompt[:-1]), _told(self.prompt[-1:]), self.chosen or "", self.rejected or ""

    @property
    def replies(self) -> dict[str, str]:
        """The replies that there are, as `chosen` and `rejected`."""
        both = {"chosen": self.chosen, "rejected": self.rejected}
        return {name: reply for name, reply in both.items() if reply is not None}


def _told(chat: Chat) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in chat)


@dataclass(frozen=True)
class Unreadable:
    """A row that is in none of the formats: its place, its text as it stood there, and why."""

    number: int
    text: str
    reason: str


def read_trl(path: Path) -> tuple[list[TrlRow], list[Unreadable]]:
    """Every row of a .jsonl, .json, .jsonl.gz, .json.gz or .parquet file, and what could not be read.

    Raises SpiritLevelError if the file itself can't be read or holds nothing.
    """
    rows: list[TrlRow] = []
    unreadable: list[Unreadable] = []
    for number, value in _values(path):
        try:
            rows.append(_row(number, _json_value(value) if isinstance(value, bytes) else value))
        except ValueError as error:
            text = value.decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else None
            unreadable.append(Unreadable(number, text or json.dumps(value, default=str), str(error)))
    if not rows and not unreadable:
        raise SpiritLevelError("holds no rows", where=str(path))
    return rows, unreadable


def _values(path: Path) -> Iterable[tuple[int, Any]]:
    """(number, value) of every row; a line of JSON is still bytes, since each may be faulty by itself."""
    if path.suffix == ".parquet":
        return read_rows(path)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError:
        raise SpiritLevelError("there is no such file", where=str(path), remedy="Check the name.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise SpiritLevelError(f"can't be read: {error}", where=str(path)) from None
    content = content.removeprefix(BOM_UTF8)
    if content.lstrip()[:1] == b"[":
        return enumerate(_json_array(path, content), start=1)
    return ((number, line.rstrip(b"\n")) for number, line in enumerate(BytesIO(content), start=1) if line.strip())


def _json_value(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None


def _json_array(path: Path, content: bytes) -> Iterable[Any]:
    try:
        return cast(list[Any], json.loads(content))
    except (ValueError, RecursionError) as error:
        raise SpiritLevelError(f"not valid JSON: {error}", where=str(path)) from None


def write_trl(path: Path, rows: Iterable[TrlRow]) -> None:
    """The rows as they were read, to JSONL or Parquet (by suffix), whole or not at all."""
    write_rows(path, (row.raw for row in rows))


def _row(number: int, raw: Any) -> TrlRow:
    """Raises ValueError with a reason that names fields, never what is in them: rows are counted by it."""
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    try:
        json.dumps(raw, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no character") from None
    if kind_of(raw) is Preference:
        return _preference(number, raw)
    if raw.get("completion") is not None:
        return _completion(number, raw)
    if raw.get("messages") is not None:
        chat = _chat(raw["messages"], "messages")
        if len(chat) < 2 or chat[-1]["role"] != "assistant":
            raise ValueError("`messages` does not end with a reply of the assistant")
        return _single(number, raw, chat[:-1], chat[-1]["content"], "messages")
    if isinstance(raw.get("text"), str) and raw.get("prompt") is None:
        return TrlRow(number, raw, "language modelling, text", [], raw["text"], None)
    raise ValueError("has neither `chosen` and `rejected`, nor `completion`, nor `messages`, nor `text` alone")


def _preference(number: int, raw: dict[str, Any]) -> TrlRow:
    if raw.get("chosen") is None or raw.get("rejected") is None:
        raise ValueError("has only one of `chosen` and `rejected`")
    form = _form(raw["chosen"])
    if raw.get("prompt") is not None:
        prompt = _chat(raw["prompt"], "prompt")
        chosen, rejected = (_reply(raw[name], prompt, name) for name in ("chosen", "rejected"))
        return TrlRow(number, raw, f"preference, {form}", prompt, chosen, rejected)
    shape = f"preference with implicit prompt, {form}"
    if form == "text":
        return TrlRow(number, raw, shape, *_split_text(raw["chosen"], raw["rejected"]))
    ours, theirs = _chat(raw["chosen"], "chosen"), _chat(raw["rejected"], "rejected")
    shared = _shared_start(ours, theirs)
    if shared == 0:
        raise ValueError("there is no `prompt`, and `chosen` and `rejected` do not begin alike")
    chosen, rejected = _one_reply(ours[shared:], "chosen"), _one_reply(theirs[shared:], "rejected")
    return TrlRow(number, raw, shape, ours[:shared], chosen, rejected)


def _completion(number: int, raw: dict[str, Any]) -> TrlRow:
    if raw.get("prompt") is None:
        raise ValueError("has `completion` but no `prompt`")
    prompt = _chat(raw["prompt"], "prompt")
    shape = f"prompt and completion, {_form(raw['completion'])}"
    return _single(number, raw, prompt, _reply(raw["completion"], prompt, "completion"), shape)


def _single(number: int, raw: dict[str, Any], prompt: Chat, reply: str, shape: str) -> TrlRow:
    """A row with one reply: a demonstration, or by its label one half of an unpaired preference."""
    label = raw.get("label")
    if label is None:
        return TrlRow(number, raw, shape, prompt, reply, None)
    if label not in (True, False):
        raise ValueError("`label` is neither true nor false")
    both = (reply, None) if label else (None, reply)
    return TrlRow(number, raw, f"unpaired preference, {shape}", prompt, *both)


def _form(value: Any) -> str:
    if not isinstance(value, str):
        return "messages"
    return "dialogue text" if _SPEAKER.match(value) else "text"


def _chat(value: Any, field: str) -> Chat:
    if isinstance(value, str):
        return _dialogue(value) if _SPEAKER.match(value) else [user(value)]
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{field}` is neither text nor messages")
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise ValueError(f"`{field}` has a message without a role that is known")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"`{field}` has a message whose content is not text")
    return cast(Chat, [{"role": message["role"], "content": message["content"]} for message in value])


def _dialogue(text: str) -> Chat:
    """hh-rlhf's form as messages; an empty last turn of the assistant, where it is to speak, is none."""
    pieces = _SPEAKER.split(text)[1:]
    turns = [(speaker, said.strip()) for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)]
    chat = [user(said) if speaker == "Human" else assistant(said) for speaker, said in turns]
    return chat[:-1] if turns[-1] == ("Assistant", "") else chat


def _reply(value: Any, prompt: Chat, field: str) -> str:
    if isinstance(value, str):
        return value
    chat = _chat(value, field)
    # Some files repeat the prompt before each reply.
    return _one_reply(chat[len(prompt) :] if chat[: len(prompt)] == prompt else chat, field)


def _one_reply(chat: Chat, field: str) -> str:
    if not chat:
        return ""  # the assistant's turn, with nothing said
    if len(chat) > 1 or chat[0]["role"] != "assistant":
        raise ValueError(f"`{field}` goes on for more than one reply after the common prompt")
    return chat[0]["content"]


def _shared_start(one: Chat, other: Chat) -> int:
    """How many messages both begin with; what the assistant says last in either is its reply, not prompt."""
    most = min(len(chat) - (chat[-1]["role"] == "assistant") for chat in (one, other))
    return min(most, _alike(one, other))


def _alike(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items both begin with."""
    differs = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


def _split_text(chosen: Any, rejected: Any) -> tuple[Chat, str, str]:
    """Plain texts part at their first different character; a space before it belongs to the replies."""
    if not isinstance(rejected, str):
        raise ValueError("`chosen` is text and `rejected` is not")
    shared = chosen[: _alike(chosen, rejected)]
    shared = shared[:-1] if shared.endswith(" ") else shared
    if not shared:
        raise ValueError("there is no `prompt`, and `chosen` and `rejected` do not begin alike")
    return [user(shared)], chosen[len(shared) :], rejected[len(shared) :]
