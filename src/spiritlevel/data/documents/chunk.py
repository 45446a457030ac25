"""Documents cut into chunks at headings, and within a section between blocks, lines, sentences and words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from spiritlevel.data.documents.document import Block, Document, trimmed
from spiritlevel.data.words import WORD, count_words
from spiritlevel.store import digest_json

_BLANK_LINE, _LINE, _SPACE = re.compile(r"\n[ \t]*\n"), re.compile(r"\n"), re.compile(r"\s+")
# The end of a sentence, not of "e.g." or "No. 5": a capital, a digit or a mark follows.
SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\b[A-Za-z]\.)(?<!\b(?:[Nn]o|Mr|Ms|Dr|cf|vs)\.)[\"')\]*_]*\s+(?=[\"'(\[*_`A-ZÀ-Þ0-9])|(?<=[。！？])"
)
_CUTS = {
    "code": (_BLANK_LINE, _LINE, _SPACE, WORD),
    "table": (_LINE, _SPACE, WORD),
}
_PROSE_CUTS = (_BLANK_LINE, SENTENCE_END, _LINE, _SPACE, WORD)


@dataclass(frozen=True)
class Chunk:
    """Blocks of one section that follow each other, in front of them its heading and those that stand right above.

    headings: from the outermost to its own; part: which chunk of its section it is, from 0.
    """

    document: Document
    blocks: tuple[Block, ...]
    headings: tuple[str, ...]
    part: int

    @property
    def text(self) -> str:
        return self.document.text[self.blocks[0].start : self.blocks[-1].end]

    @cached_property
    def body(self) -> tuple[Block, ...]:
        """Its blocks without its headings, and without rules and comments at its ends."""
        blocks = [block for block in self.blocks if block.kind != "heading"]
        while blocks and blocks[-1].kind == "markup":
            blocks.pop()
        while blocks and blocks[0].kind == "markup":
            blocks.pop(0)
        return tuple(blocks)

    @property
    def body_text(self) -> str:
        return self.document.text[self.body[0].start : self.body[-1].end].strip() if self.body else ""

    @cached_property
    def digest(self) -> str:
        """Of the document's bytes and the place in it."""
        return digest_json([self.document.digest, self.blocks[0].start, self.blocks[-1].end])

    def provenance(self, block: Block | None = None) -> dict[str, str | int]:
        """The place of the chunk, or of one block of it."""
        place = (block or (self.body or self.blocks)[0]).place
        return {
            "file": self.document.name,
            "heading": " > ".join(self.headings),
            self.document.unit: place,
            "digest": self.document.digest,
            "chunk": self.digest[:12],
        }


def cut(document: Document, *, words: int) -> list[Chunk]:
    """Chunks in order, of at most `words` words beside their headings. Each block is in exactly one of them, whole if
    it fits."""
    chunks: list[Chunk] = []
    for headings, section in _sections(document):
        titles = [block for block in section if block.kind == "heading"]
        pieces = [piece for block in section if block.kind != "heading" for piece in _pieces(document, block, words)]
        groups = list(_groups(document, pieces, words)) or [[]]
        for part, group in enumerate(groups):
            blocks = [*titles, *group] if part == 0 else group
            chunks.append(Chunk(document, tuple(blocks), headings, part))
    return chunks


def _sections(document: Document) -> Iterator[tuple[tuple[str, ...], list[Block]]]:
    """(headings, blocks). A heading with nothing under it but another heading goes with that one."""
    path: list[tuple[int, str]] = []
    section: list[Block] = []
    for block in document.blocks:
        if block.kind == "heading":
            if any(other.kind != "heading" for other in section):
                yield tuple(words for _, words in path), section
                section = []
            path = [(level, words) for level, words in path if level < block.level]
            if path and path[-1][1].endswith("?") and block.words.endswith("?"):
                path.pop()  # one question is not part of another
            path.append((block.level, block.words))
        section.append(block)
    if section:
        yield tuple(words for _, words in path), section


def _groups(document: Document, pieces: Sequence[Block], words: int) -> Iterator[list[Block]]:
    """As many pieces as fit, in order."""
    group: list[Block] = []
    size = 0
    for piece in pieces:
        more = count_words(document.of(piece))
        if group and size + more > words:
            yield group
            group, size = [], 0
        group.append(piece)
        size += more
    if group:
        yield group


def _pieces(document: Document, block: Block, words: int) -> Iterator[Block]:
    for start, end in _cut(document.text, block.start, block.end, words, _CUTS.get(block.kind, _PROSE_CUTS)):
        part = document.part(block, start, end)
        # Only its first part is a point of a list, with its mark.
        yield replace(part, kind="paragraph") if block.kind == "item" and start > block.start else part


def _cut(text: str, start: int, end: int, words: int, cuts: Sequence[re.Pattern[str]]) -> Iterator[tuple[int, int]]:
    """Ranges of at most `words` words, cut at the coarsest of `cuts` that does."""
    start, end = trimmed(text, start, end)
    if count_words(text[start:end]) <= words or not cuts:
        yield start, end
        return
    ends = [match.end() for match in cuts[0].finditer(text, start, end)]
    bounds = [start, *(place for place in ends if start < place < end), end]
    begin = bounds[0]
    for place, following in zip(bounds[1:], [*bounds[2:], None], strict=True):
        if following is None or count_words(text[begin:following]) > words:
            if text[begin:place].strip():
                yield from _cut(text, begin, place, words, cuts[1:])
            begin = place
