"""The blocks of a plain text, by its blank lines, underlines, numbers and capitals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from spiritlevel.data.documents.document import Block, Start, blocks_between

BULLET = re.compile(r"\s*(?:[-*•‣–o]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s+\S")
_UNDERLINE = re.compile(r"([=\-~^\"'`*+#:.])\1{2,}\s*")
_NUMBERED = re.compile(r"\s*(?:chapter\s+|section\s+|§\s*)?(\d{1,3}(?:\.\d{1,3}){0,5})\.?\s+[A-Z]\S*", re.IGNORECASE)
_MOST_HEADING_WORDS, _QUESTION_LEVEL = 12, 7


def plain_blocks(text: str, outline: Mapping[str, int] | None = None) -> list[Block]:
    """Blocks in order, placed by line. outline: headings that are known, in lower case, with their levels."""
    return blocks_between(text, list(_starts(text.split("\n"), outline or {})))


def _starts(lines: list[str], outline: Mapping[str, int]) -> Iterator[Start]:
    marks: list[str] = []  # of underlines, the outermost first
    line, begun = 0, False
    while line < len(lines):
        heading = _heading(lines, line, outline, marks, after_blank=not begun)
        if heading is not None:
            level, words, height = heading
            yield Start(line, "heading", level, words)
            line, begun = line + height, False
            continue
        if not lines[line].strip():
            begun = False
        elif BULLET.match(lines[line]):
            yield Start(line, "item")
            begun = True
        elif not begun:
            yield Start(line, "paragraph")
            begun = True
        line += 1


def _heading(
    lines: list[str], line: int, outline: Mapping[str, int], marks: list[str], *, after_blank: bool
) -> tuple[int, str, int] | None:
    """(level, words, how many lines it has), or None."""
    words = " ".join(lines[line].split())
    if not words or len(words.split()) > 2 * _MOST_HEADING_WORDS:
        return None
    if words.casefold() in outline:
        return outline[words.casefold()], words, 1
    following = lines[line + 1] if line + 1 < len(lines) else ""
    if not after_blank:
        return None
    if _UNDERLINE.fullmatch(following) and len(following.strip()) >= len(words) / 2 and not _UNDERLINE.fullmatch(words):
        if (mark := following[0]) not in marks:
            marks.append(mark)
        return marks.index(mark) + 1, words, 2
    has_body = any(other.strip() for other in lines[line + 2 :][:3])
    if following.strip() or not has_body or _looks_like_a_sentence(words):
        return None
    if words.endswith("?"):
        return _QUESTION_LEVEL, words, 1
    if (number := _NUMBERED.match(words)) and not any(_NUMBERED.match(other) for other in lines[line + 2 : line + 3]):
        return number[1].count(".") + 1, words, 1
    if words.isupper() and re.search(r"[A-Z]{4}", words):
        return 1, words, 1
    return None


def _looks_like_a_sentence(words: str) -> bool:
    most = _MOST_HEADING_WORDS * (2 if words.endswith("?") else 1)
    return words.endswith((".", ",", ";", ":", "!")) or len(words.split()) > most
