"""Documents to chunks and demonstrations, with nothing in them that a suite must find unseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spiritlevel.data.demonstration import Demonstration
from spiritlevel.data.documents.chunk import Chunk, cut
from spiritlevel.data.documents.document import Document
from spiritlevel.data.documents.structure import Structure
from spiritlevel.data.overlap import Unseen
from spiritlevel.errors import check_setting

# A model's questions on each chunk, and why others of its were dropped.
Ask = Callable[[Sequence[Chunk]], list[tuple[list[Demonstration], Counter[str]]]]


@dataclass
class DocumentCounts:
    """Of one document: records by kind, and by reason what was dropped; note: what of it was not read."""

    note: str
    chunks: int = 0
    records: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class DomainData:
    """What documents gave: chunks, demonstrations, and counts by the document's name."""

    chunks: list[Chunk] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)
    counts: dict[str, DocumentCounts] = field(default_factory=dict)


def make_demonstrations(
    documents: Sequence[Document],
    *,
    unseen: Unseen,
    words: int = 200,
    wordings: int = 2,
    ask: Ask | None = None,
) -> DomainData:
    """Chunks of at most `words` words and demonstrations, in the documents' order: the same for the same input.

    By structure, each question in `wordings` ways, and by the model behind `ask`. What overlaps with a text in `unseen`
    is left out: records one by one, so that the others of a chunk stay, and chunks, which the model is then not shown.
    """
    check_setting("words", words, words >= 20, "at least 20")
    check_setting("wordings", wordings, wordings >= 1, "at least 1")
    data = DomainData()
    records: list[Demonstration] = []
    for document in documents:
        counts = data.counts[document.name] = DocumentCounts(document.note)
        chunks = cut(document, words=words)
        structure = Structure(chunks, wordings)
        records += structure.demonstrations()
        counts.dropped += structure.dropped
        clean = [chunk for chunk in chunks if not _overlaps(chunk.text, unseen, counts, "chunk")]
        counts.chunks = len(clean)
        data.chunks += clean
    if ask is not None:
        asked = [chunk for chunk in data.chunks if chunk.body]
        for chunk, (found, dropped) in zip(asked, ask(asked), strict=True):
            records += found
            data.counts[chunk.document.name].dropped += dropped
    for record in _agreeing(records, data.counts):
        counts = data.counts[record.provenance["file"]]
        texts = [turn.content for turn in (*record.prompt, *record.completion)]
        if not any(_overlaps(text, unseen, counts, "record") for text in texts):
            counts.records[record.provenance["kind"]] += 1
            data.demonstrations.append(record)
    return data


def chunk_rows(chunks: Sequence[Chunk]) -> Iterator[dict[str, Any]]:
    """Chunks as rows of a file, with TRL's column for plain text."""
    for chunk in chunks:
        yield {"text": chunk.text, "provenance": chunk.provenance()}


def _overlaps(text: str, unseen: Unseen, counts: DocumentCounts, what: str) -> bool:
    overlap = unseen.overlap(text)
    if overlap is not None:
        counts.dropped[f"{what}: overlaps with {Path(overlap.unseen.file).name}"] += 1
    return overlap is not None


def _agreeing(records: Sequence[Demonstration], counts: dict[str, DocumentCounts]) -> Iterator[Demonstration]:
    """Each once, and of one question only the first answer: a second would teach that both are wrong."""
    answers: dict[tuple[Any, ...], str] = {}
    for record in records:
        if record.prompt not in answers:
            answers[record.prompt] = record.completion_text
            yield record
        else:
            same = answers[record.prompt] == record.completion_text
            reason = "the same as one before" if same else "its question has another answer already"
            counts[record.provenance["file"]].dropped[f"record: {reason}"] += 1
