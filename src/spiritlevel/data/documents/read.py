"""All documents below a folder. What can't be read is told by name and reason, and stops nothing."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from spiritlevel.data.documents.document import Document, Parsed, UnreadableError
from spiritlevel.data.documents.markdown import markdown_blocks, split_front_matter
from spiritlevel.data.documents.pdf import read_pdf, require_pdf
from spiritlevel.data.documents.plain import plain_blocks
from spiritlevel.data.documents.web import declared_encoding, read_html, require_html
from spiritlevel.errors import SpiritLevelError

_MARKDOWN, _PLAIN, _HTML, _PDF = {".md", ".markdown"}, {".txt", ".text", ".rst"}, {".html", ".htm", ".xhtml"}, {".pdf"}
_KNOWN = _MARKDOWN | _PLAIN | _HTML | _PDF
_MOST_BYTES, _LONGEST_TITLE = 32_000_000, 120
_MARKS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]


def find_documents(root: Path) -> tuple[list[Path], dict[str, str]]:
    """(files to read, sorted; what is passed over, with the reason). Links are not followed: they may lead in a circle,
    or out of what was meant to be taught. Raises SpiritLevelError if there is no such folder."""
    if root.is_file():
        return [root], {}
    if not root.is_dir():
        raise SpiritLevelError("there is no such folder", where=str(root), remedy="Name the folder of the documents.")
    found, passed = [], {}

    def unreadable(error: OSError) -> None:
        passed[_name(Path(error.filename), root)] = f"can't be read: {error.strerror}"

    for folder, folders, files in os.walk(root, onerror=unreadable):
        for name in sorted([*folders, *files]):
            path = Path(folder, name)
            reason = _why_not(path, is_folder=name in folders)
            if reason:
                passed[_name(path, root)] = reason
            elif name in files:
                found.append(path)
        folders[:] = sorted(name for name in folders if _name(Path(folder, name), root) not in passed)
    return sorted(found), passed


def read_documents(
    root: Path, *, encoding: str | None = None, on_progress: Callable[[int], None] | None = None
) -> tuple[list[Document], dict[str, str]]:
    """(documents, and for every other file why it is none). Same files, same result.

    encoding: of text that is neither UTF-8 nor marked; None passes it over. Raises SpiritLevelError if there is no
    such folder, or nothing in it can be read.
    """
    _check_encoding(encoding)
    paths, passed = find_documents(root)
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes & _HTML:
        require_html()
    if suffixes & _PDF:
        require_pdf()
    documents = []
    for path in paths:
        name = _name(path, root)
        try:
            documents.append(read_document(path, name, encoding=encoding))
        except UnreadableError as reason:
            passed[name] = str(reason)
        except OSError as error:
            passed[name] = f"can't be read: {error.strerror}"
        if on_progress is not None:
            on_progress(1)
    if not documents:
        reasons = "; ".join(f"{count}x {reason}" for reason, count in Counter(passed.values()).most_common(3))
        raise SpiritLevelError(
            f"holds no document that can be read{f' ({reasons})' if reasons else ''}",
            where=str(root),
            remedy=f"Give a folder of {', '.join(sorted(_KNOWN))} files.",
        )
    return list(_told_apart(documents)), dict(sorted(passed.items()))


def read_document(path: Path, name: str, *, encoding: str | None = None) -> Document:
    """Raises UnreadableError, which says why, and OSError."""
    if path.stat().st_size > _MOST_BYTES:
        raise UnreadableError(f"larger than {_MOST_BYTES // 1_000_000} MB: split it")
    data = path.read_bytes()
    suffix = path.suffix.lower()
    parsed = _parsed(data, suffix, encoding)
    if not parsed.text.strip():
        raise UnreadableError("empty")
    heading = next((block.words for block in parsed.blocks if block.kind == "heading" and block.level == 1), "")
    title = parsed.title or heading or _spoken(path.stem)
    return Document(
        name=name,
        title=" ".join(title.split())[:_LONGEST_TITLE],
        text=parsed.text,
        blocks=tuple(parsed.blocks),
        digest=hashlib.sha256(data).hexdigest(),
        unit="page" if suffix in _PDF else "line",
        note=parsed.note,
    )


def _parsed(data: bytes, suffix: str, encoding: str | None) -> Parsed:
    if suffix in _PDF:
        return read_pdf(data)
    if suffix in _HTML:
        return read_html(_decoded(data, declared_encoding(data) or encoding))
    text = _decoded(data, encoding)
    if suffix in _MARKDOWN:
        title, text = split_front_matter(text)
        return Parsed(title, text, markdown_blocks(text))
    return Parsed("", text, plain_blocks(text))


def _why_not(path: Path, *, is_folder: bool) -> str:
    if path.is_symlink():
        return "a link, which is not followed"
    if path.name.startswith("."):
        return "hidden"
    if is_folder:
        return ""
    if not path.is_file():
        return "no regular file"
    return "" if path.suffix.lower() in _KNOWN else "not Markdown, text, HTML or PDF"


def _decoded(data: bytes, other: str | None) -> str:
    """Text with line feeds. `other` is tried on what is neither marked nor UTF-8."""
    marked = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    if marked is None and b"\0" in data:
        raise UnreadableError("binary")
    try:
        text = data.decode(marked or "utf-8")
    except UnicodeDecodeError as error:
        if marked or other is None:
            line = data.count(b"\n", 0, error.start) + 1
            raise UnreadableError(
                f"not {marked or 'UTF-8'} (line {line}): name its --encoding, or convert it"
            ) from None
        try:
            text = data.decode(other)
        except (UnicodeDecodeError, LookupError):
            raise UnreadableError(f"neither UTF-8 nor {other}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def _check_encoding(encoding: str | None) -> None:
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise SpiritLevelError(
            f"there is no encoding {encoding!r}", remedy="Give a name that Python knows, such as windows-1252."
        ) from None


def _told_apart(documents: list[Document]) -> Iterator[Document]:
    """Titles that several documents have are given the file's name: a question must say which one it means."""
    counts = Counter(document.title.casefold() for document in documents)
    for document in documents:
        shared = counts[document.title.casefold()] > 1
        yield replace(document, title=f"{document.title} ({document.name})") if shared else document


def _name(path: Path, root: Path) -> str:
    """Below `root`; bytes of a name that are no UTF-8 are shown as such."""
    name = path.name if path == root else path.relative_to(root).as_posix()
    return os.fsencode(name).decode("utf-8", "replace")


def _spoken(stem: str) -> str:
    return " ".join(re.split(r"[-_\s]+", stem)).strip() or stem
