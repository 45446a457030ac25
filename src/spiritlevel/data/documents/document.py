"""A document as its text and the blocks that it is laid out in: what all formats become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal


class UnreadableError(Exception):
    """Why a file gives no text; the file is then passed over."""


BlockKind = Literal["heading", "paragraph", "item", "table", "code", "markup"]


@dataclass(frozen=True)
class Block:
    """`text[start:end]` of a document. Blocks follow each other, and nothing but white space lies between them.

    place: line or page, from 1; level: of a heading, from 1, the outermost; words: of a heading, without markup.
    """

    kind: BlockKind
    start: int
    end: int
    place: int
    level: int = 0
    words: str = ""


@dataclass(frozen=True)
class Parsed:
    """What a format's reader makes of a file. title: as the file itself names it, or empty."""

    title: str
    text: str
    blocks: list[Block]
    note: str = ""


@dataclass(frozen=True)
class Start:
    """A line, from 0, on which a block begins."""

    line: int
    kind: BlockKind
    level: int = 0
    words: str = ""


@dataclass(frozen=True)
class Document:
    """name: its path below the folder that was read; digest: SHA-256 of its bytes; note: what of it was not read."""

    name: str
    title: str
    text: str
    blocks: tuple[Block, ...]
    digest: str
    unit: Literal["line", "page"] = "line"
    note: str = ""

    def of(self, block: Block) -> str:
        return self.text[block.start : block.end]

    def part(self, block: Block, start: int, end: int) -> Block:
        """A block of a part of `block`'s text."""
        lines = self.text.count("\n", block.start, start) if self.unit == "line" else 0
        return replace(block, start=start, end=end, place=block.place + lines)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The range without blank lines in front and white space behind; an indentation stays."""
    end = start + len(text[start:end].rstrip())
    body = text[start:end]
    blank = body[: len(body) - len(body.lstrip())]
    return start + blank.rfind("\n") + 1, end


def blocks_between(text: str, starts: Sequence[Start]) -> list[Block]:
    """Blocks from one start to the next, so that they cover all from the first on; what is blank is none."""
    offsets = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    limits = [*(offsets[start.line] for start in starts[1:]), len(text)]
    blocks = []
    for begin, limit in zip(starts, limits, strict=False):
        start, end = trimmed(text, offsets[begin.line], limit)
        if start < end:
            line = text.count("\n", offsets[begin.line], start) + begin.line + 1
            blocks.append(Block(begin.kind, start, end, line, begin.level, begin.words))
    return blocks
