"""What a file of training data holds, what training would lose of it, and what is wrong with it, as a document.

Nothing in it depends on the order of the rows, except which rows are named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spiritlevel.data import report_sections as sections
from spiritlevel.data.contradictions import comparisons
from spiritlevel.data.duplicates import find_duplicates
from spiritlevel.data.lengths import Lengths, measure_by
from spiritlevel.data.trl import TrlRow, read_trl

Progress = Callable[[int], None]


def data_report(
    path: Path, *, tokenizer: Any = None, max_length: int = 1024, on_progress: Progress | None = None
) -> dict[str, Any]:
    """The report on a file that `read_trl` reads. Without a tokenizer lengths are in words, and neither cuts nor the
    template are looked at.

    on_progress(n): n rows more have been compared or measured; each is twice. Raises SpiritLevelError if the file can't
    be read at all.
    """
    rows, unreadable = read_trl(path)
    duplicates = find_duplicates([row.parts for row in rows], on_progress=on_progress)
    compared = comparisons(rows)
    lengths, refused = _measure(rows, tokenizer, on_progress)
    unit = "words" if tokenizer is None else "tokens"
    made = [
        sections.reading(rows, unreadable, refused),
        sections.length(lengths, unit, None if tokenizer is None else max_length),
        *([] if tokenizer is None else [sections.truncation(lengths, max_length)]),
        sections.repetition(rows, duplicates, compared),
        sections.labels(rows, lengths, unit, compared),
        sections.endings(rows),
        *([] if tokenizer is None else [sections.template(rows, lengths, tokenizer)]),
    ]
    return {
        "file": str(path),
        "rows": len(rows) + len(unreadable),
        "read": len(rows),
        "tokenizer": None if tokenizer is None else str(tokenizer.name_or_path),
        "unit": unit,
        "max_length": None if tokenizer is None else max_length,
        "sections": [asdict(section) for section in made if section.figures],
    }


def _measure(
    rows: list[TrlRow], tokenizer: Any, on_progress: Progress | None
) -> tuple[list[Lengths], dict[str, list[TrlRow]]]:
    """The lengths of the rows, and those that the template refuses, by its words."""
    measure = measure_by(tokenizer)
    lengths: list[Lengths] = []
    refused: dict[str, list[TrlRow]] = {}
    for row in rows:
        try:
            lengths.append(measure(row))
        except ValueError as error:
            refused.setdefault(str(error), []).append(row)
        if on_progress is not None:
            on_progress(1)
    return lengths, refused
