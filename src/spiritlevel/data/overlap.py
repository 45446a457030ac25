"""Which training texts give away a text that must stay unseen: decontamination by runs of words.

Two texts overlap if they have 13 words in a row in common, whatever their case and punctuation (Brown et al. 2020,
arXiv:2005.14165, appendix C). Of shorter texts, all words of the shorter one must stand in a row in the other, if
they are five or more; one of three or four words overlaps only with one of the same words. Paraphrases are not found.
"""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from spiritlevel.charter import Charter, read_probes
from spiritlevel.data.words import SIGNS
from spiritlevel.errors import SpiritLevelError
from spiritlevel.store import read_json, read_jsonl

RUN = 13
# Fewer words stand in a row by chance ("how do i get a"), or are a label ("yes").
_SHORTEST_RUN, _SHORTEST_TEXT = 5, 3
_WORD = re.compile(rf"[{SIGNS}]|[^\W_{SIGNS}]+")
_TEXT = re.compile(rf"\S\s+\S|[{SIGNS}]{{{_SHORTEST_TEXT}}}")
_SUFFIXES = (".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class UnseenText:
    """file: of the suite; place: line or row in it."""

    text: str
    file: str
    place: str = ""


@dataclass(frozen=True)
class Overlap:
    """words: what the two texts have in common."""

    unseen: UnseenText
    words: str


def words_of(text: str) -> list[str]:
    """Words as they are compared: no punctuation, no case, one form of each character (Unicode's NFKC)."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(re.sub("['’]", "", plain))


class Unseen:
    """An index of texts that must not be trained on."""

    def __init__(self, texts: Iterable[UnseenText]) -> None:
        with_words = ((text, words_of(text.text)) for text in texts)
        self._texts = [(text, words) for text, words in with_words if len(words) >= _SHORTEST_TEXT]

    def __len__(self) -> int:
        return len(self._texts)

    def overlap(self, text: str) -> Overlap | None:
        """The longest kind of run that `text` has in common with one of the texts, or None."""
        words = words_of(text)
        for length in sorted(self._whole, reverse=True):
            if length >= _SHORTEST_RUN or length == len(words):
                for run in _runs(words, length):
                    if (unseen := self._whole[length].get(run)) is not None:
                        return Overlap(unseen, run)
        if _SHORTEST_RUN <= len(words) < RUN:
            run = " ".join(words)
            if (unseen := self._parts(len(words)).get(run)) is not None:
                return Overlap(unseen, run)
        return None

    @cached_property
    def _whole(self) -> dict[int, dict[str, UnseenText]]:
        """By length: the runs of 13 words of the long texts, and of each shorter one all its words."""
        index: dict[int, dict[str, UnseenText]] = {}
        for text, words in self._texts:
            length = min(RUN, len(words))
            runs = index.setdefault(length, {})
            for run in _runs(words, length):
                runs.setdefault(run, text)
        return index

    def _parts(self, length: int) -> dict[str, UnseenText]:
        """All runs of `length` words, in which a text as short as that is looked for."""
        if length not in self._by_length:
            self._by_length[length] = {run: text for text, words in self._texts for run in _runs(words, length)}
        return self._by_length[length]

    @cached_property
    def _by_length(self) -> dict[int, dict[str, UnseenText]]:
        return {}


def _runs(words: list[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def held_out_texts(charter: Charter) -> list[UnseenText]:
    """The prompts and replies of a charter's held-out probes. Raises SpiritLevelError if it has none."""
    probes = read_probes(charter, "held_out")
    if not probes:
        remedy = "Add some, or leave `--charter` out."
        raise SpiritLevelError("has no held-out probes", where=str(charter.path), remedy=remedy)
    texts = [(text, probe.where) for probe in probes for text in (probe.prompt, probe.reply) if text]
    return [UnseenText(text, *where.rsplit(":", 1)) for text, where in texts]


def read_suite(path: Path) -> list[UnseenText]:
    """Every text in the rows of a JSONL, JSON or CSV file, in whatever column.

    Values of one word (ids, labels, URLs) are no texts. Raises SpiritLevelError naming the file and the line.
    """
    if path.suffix not in _SUFFIXES:
        raise SpiritLevelError(
            f"a suite is read from {', '.join(_SUFFIXES)}", where=str(path), remedy="Convert it to one of these."
        )
    rows = {".jsonl": read_jsonl, ".json": _read_json, ".csv": _read_csv}[path.suffix](path)
    texts = [UnseenText(text, str(path), str(number)) for number, row in rows for text in _strings(row)]
    if not texts:
        raise SpiritLevelError("holds no text", where=str(path), remedy="Give a file whose columns hold the questions.")
    return texts


def _read_json(path: Path) -> list[tuple[int, Any]]:
    value = read_json(path)
    return list(enumerate(value if isinstance(value, list) else [value], start=1))


def _read_csv(path: Path) -> list[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader][1:]  # after the names of the columns
    except OSError as error:
        problem = error.strerror or str(error)
        raise SpiritLevelError(problem, where=str(path), remedy="Name a file that can be read.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpiritLevelError(
            f"not valid CSV in UTF-8: {error}", where=str(path), remedy="Export it again as CSV in UTF-8."
        ) from None


def _strings(value: Any) -> Iterator[str]:
    """All strings of several words, from any nesting."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if _TEXT.search(value):
                yield value
        elif isinstance(value, dict):
            waiting.extend(reversed(value.values()))
        elif isinstance(value, list):
            waiting.extend(reversed(value))
