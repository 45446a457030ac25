"""A document as its text and the blocks that it is laid out in: what all formats become."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

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
