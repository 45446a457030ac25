"""The text of a PDF, by pypdf: its words page by page, with the outline for headings."""

from __future__ import annotations

import io
import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from spiritlevel.data.documents.document import Parsed, UnreadableError
from spiritlevel.data.documents.plain import BULLET, plain_blocks
from spiritlevel.errors import SpiritLevelError

_NEED = "pip install 'spiritlevel[documents]', or convert it to text."
_FULL_LINE = 0.7  # of the widest; a shorter one that ends a sentence ends its paragraph
_NO_TITLE = re.compile(r"untitled.*|microsoft \w+ - .*|.*\.(docx?|pptx?|xlsx?|odt|indd|tex|dvi|pdf)", re.IGNORECASE)
_NUMBERED = re.compile(r"\d{1,3}(\.\d{1,3})+\.?\s+[A-Z][^.]*")


def require_pdf() -> None:
    """Raises SpiritLevelError if pypdf is not installed."""
    try:
        import pypdf  # noqa: F401
    except ImportError:
        raise SpiritLevelError("reading PDF needs pypdf", remedy=_NEED) from None


def read_pdf(data: bytes) -> Parsed:
    """Raises UnreadableError if it is encrypted, damaged or nothing but pictures."""
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of every small fault that it mends
    try:
        return _read(data)
    except UnreadableError:
        raise
    except (PyPdfError, Exception) as error:  # a hostile or torn file makes the parser raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"damaged PDF: {reason[:120]}") from None


def _read(data: bytes) -> Parsed:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(io.BytesIO(data))
    try:
        if reader.is_encrypted and not reader.decrypt(""):  # many only forbid printing
            raise UnreadableError("encrypted: save it without its password")
    except DependencyError:
        raise UnreadableError("encrypted: save it without its password") from None
    outline = {words.casefold(): level for words, level in _outline(reader.outline, 1)}
    sheets = [_lines(page.extract_text()) for page in reader.pages]
    running = _running_lines(sheets)
    sheets = [[line for line in sheet if _key(line) not in running] for sheet in sheets]
    pages = ["\n\n".join(_paragraphs(sheet, outline)) for sheet in sheets]
    blank = sum(not page.strip() for page in pages)
    if blank == len(pages):
        raise UnreadableError("no text on any page: scanned pages need optical character recognition first")
    text = "\n\n".join(pages)
    starts = [0, *accumulate(len(page) + 2 for page in pages)]
    blocks = [replace(block, place=bisect_right(starts, block.start)) for block in plain_blocks(text, outline)]
    title = (reader.metadata.title or "").strip() if reader.metadata else ""
    title = "" if _NO_TITLE.fullmatch(title) else title
    return Parsed(title, text, blocks, f"{blank} of {len(pages)} pages hold no text" if blank else "")


def _lines(text: str) -> list[str]:
    """Those of a page, without blank ones in front and behind; halves of characters are joined, or replaced."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\r\n", "\n").replace("\r", "\n").strip().split("\n")


def _outline(entries: list[Any], level: int) -> Iterator[tuple[str, int]]:
    for entry in entries:
        if isinstance(entry, list):
            yield from _outline(entry, level + 1)
        elif title := " ".join(str(entry.title).split()):
            yield title, level


def _running_lines(sheets: list[list[str]]) -> set[str]:
    """Heads and feet: what is first or last on most of four pages or more, whatever its page number."""
    edges = Counter(key for sheet in sheets for key in {_key(line) for line in (sheet[0], sheet[-1])} if key)
    return {key for key, count in edges.items() if len(sheets) >= 4 and count > len(sheets) / 2}


def _key(line: str) -> str:
    return re.sub(r"\d+", "#", " ".join(line.split()))


def _paragraphs(lines: list[str], outline: dict[str, int]) -> list[str]:
    """Lines joined where a paragraph was broken into lines; a list item or a heading begins a new one."""
    widest = max((len(line) for line in lines), default=0)
    paragraphs: list[str] = []
    ended = True
    for line in (line.strip() for line in lines):
        alone = " ".join(line.split()).casefold() in outline or bool(_NUMBERED.fullmatch(line))
        if not line:
            ended = True
        elif ended or alone or BULLET.match(line):
            paragraphs.append(line)
            ended = alone
        elif re.search(r"[a-z]-$", paragraphs[-1]) and line[0].islower():
            paragraphs[-1] = _joined(paragraphs[-1], line)
        else:
            paragraphs[-1] += f" {line}"
        if line.endswith((".", "!", "?", ":")) and len(line) < _FULL_LINE * widest:
            ended = True
    return paragraphs


def _joined(before: str, line: str) -> str:
    """A word that was divided between two lines; one with another hyphen ("state-of-the-") keeps this one."""
    compound = "-" in before.split()[-1][:-1]
    return before + line if compound else before[:-1] + line
