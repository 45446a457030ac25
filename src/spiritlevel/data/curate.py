"""Undesirable rows out before training: each filter says why, and what is dropped is kept beside with the evidence.

A filter of single rows is a function that gives a `Reason` or None; the first that has one drops the row. Then come the
two that need all rows that are left: contradictions, while every vote still counts, and duplicates after them.

Any `Check` can be a filter, so what a charter forbids at run time is forbidden here by the same code. There is no
learned toxicity check yet, and no list of words stands in for one: it would drop the rows that quote or decline insults
and pass those that insult politely. A charter's `forbid` patterns do what patterns can.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spiritlevel.charter import Charter
from spiritlevel.chat import Chat
from spiritlevel.checks import Check, Finding, rule_checks, run_checks
from spiritlevel.checks.kinds import IDENTIFIERS
from spiritlevel.data.contradictions import comparisons
from spiritlevel.data.duplicates import SIMILAR, find_duplicates
from spiritlevel.data.overlap import Unseen
from spiritlevel.data.record import plain
from spiritlevel.data.trl import TrlRow, Unreadable
from spiritlevel.data.words import count_words
from spiritlevel.errors import SpiritLevelError

# Fewer, such as the last four of a card, give nobody away; plain years and small amounts have them too.
_DIGITS = 7
_IDENTIFIERS = [re.compile(pattern, re.IGNORECASE) for pattern in IDENTIFIERS]
_DATE = re.compile(r"\b(?:19|20)\d\d-(?:\d\d-\d\d|(?:19|20)\d\d)\b")
# So many lines of each side of a contradiction are named.
_LINES = 10
# A language is told from so many letters on, and dropped only if the model is as sure as this.
_LETTERS, _SURE = 40, 0.9


@dataclass(frozen=True)
class Reason:
    """Why a row is dropped: in words that are the same for all such rows, under which rule, and what was seen."""

    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    rule: str | None = None


Filter = Callable[[TrlRow], Reason | None]


@dataclass(frozen=True)
class Dropped:
    row: TrlRow
    why: Reason

    def as_json(self) -> dict[str, Any]:
        """The row as it was read, with its line and why it was dropped."""
        why = {"reason": self.why.reason, "rule": self.why.rule, "evidence": self.why.evidence}
        return {"line": self.row.number, **why, "row": plain(self.row.raw)}


def curate(
    rows: Sequence[TrlRow],
    filters: Sequence[Filter],
    *,
    similar: float = SIMILAR,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[TrlRow], list[Dropped]]:
    """The rows to keep and those to drop, both in file order; every row is in one of the two.

    on_progress(n): n rows more have passed the filters or been compared with the others; a row that passes is twice.
    """
    dropped: list[Dropped] = []
    kept: list[TrlRow] = []
    for row in rows:
        why = next((found for each in filters if (found := each(row)) is not None), None)
        if why is None:
            kept.append(row)
        else:
            dropped.append(Dropped(row, why))
        if on_progress is not None:
            on_progress(1)
    for among in (_outvoted, lambda rows: _duplicates(rows, similar, on_progress)):
        reasons = among(kept)
        dropped += [Dropped(kept[index], why) for index, why in reasons.items()]
        kept = [row for index, row in enumerate(kept) if index not in reasons]
    return kept, sorted(dropped, key=lambda each: each.row.number)


def counts(dropped: Sequence[Dropped], unreadable: Sequence[Unreadable]) -> list[tuple[str, str | None, int]]:
    """(reason, rule, rows) of everything that is not kept, the most frequent first."""
    found = Counter((each.why.reason, each.why.rule) for each in dropped)
    found.update((f"can't be read: {row.reason}", None) for row in unreadable)
    return [(reason, rule, count) for (reason, rule), count in found.most_common()]


def _outvoted(rows: Sequence[TrlRow]) -> dict[int, Reason]:
    reasons = {}
    for question in comparisons(rows):
        if question.contested:
            one = set(question.one)
            for index in question.outvoted:
                side, others = (question.one, question.other)[:: 1 if index in one else -1]
                evidence = {
                    "votes_against": len(others),
                    "votes_for": len(side),
                    "lines_against": [rows[other].number for other in others[:_LINES]],
                    "lines_for": [rows[other].number for other in side[:_LINES]],
                }
                reasons[index] = Reason("contradicts other rows", evidence)
    return reasons


def _duplicates(rows: Sequence[TrlRow], similar: float, on_progress: Callable[[int], None] | None) -> dict[int, Reason]:
    reasons = {}
    for found in find_duplicates([row.parts for row in rows], similar, on_progress):
        first, like = rows[found.of].number, rows[found.like].number
        evidence = {"first_line": first, "like_line": like, "similarity": round(found.similarity, 4)}
        reasons[found.index] = Reason("exact duplicate" if found.exact else "near duplicate", evidence)
    return reasons


# --- filters of single rows


def empty_reply(row: TrlRow) -> Reason | None:
    empty = [name for name, reply in row.replies.items() if not reply.strip()]
    return Reason("a reply is empty", {"replies": empty}) if empty else None


def same_replies(row: TrlRow) -> Reason | None:
    same = row.chosen is not None and row.chosen == row.rejected
    return Reason("chosen and rejected are the same") if same else None


def too_long(length: Callable[[TrlRow], int], most: int, unit: str) -> Filter:
    """length: of the prompt with the longer reply; ValueError if the model's template does not render the row."""

    def check(row: TrlRow) -> Reason | None:
        try:
            found = length(row)
        except ValueError as error:
            return Reason("the template refuses the conversation", {"said": str(error)})
        return Reason(f"longer than {most} {unit}", {"length": found}) if found > most else None

    return check


def too_short(fewest: int) -> Filter:
    """By the words of the reply that is to be learnt."""

    def check(row: TrlRow) -> Reason | None:
        found = count_words(row.chosen or "")
        short = row.chosen is not None and found < fewest
        return Reason(f"a chosen reply of fewer than {fewest} words", {"length": found}) if short else None

    return check


def breaking(checks: Mapping[str, Sequence[Check]]) -> Filter:
    """Rows whose chosen reply any of the checks, by rule, finds something in."""

    def check(row: TrlRow) -> Reason | None:
        for rule, of_rule in checks.items() if row.chosen is not None else ():
            if found := run_checks(of_rule, row.prompt, row.chosen or ""):
                evidence = {"found": found[0].evidence, "span": list(found[0].span)}
                return Reason("the chosen reply breaks a rule", evidence, rule)
        return None

    return check


def charter_checks(charter: Charter) -> dict[str, list[Check]]:
    """The checks of each rule that judge replies: the ones of run time."""
    return {rule.id: rule_checks(rule) for rule in charter.rules}


def identifiers(chat: Chat, reply: str) -> list[Finding]:
    """A check that finds e-mail addresses, IBANs and numbers of seven or more digits, by the patterns of `echo`.

    ISO dates and ranges of years are left out. Patterns know neither names nor what a number stands for: a large amount
    or a date in another form is found too.
    """
    matches = (match for pattern in _IDENTIFIERS for match in pattern.finditer(reply))
    return [
        Finding("identifiers", 1.0, match.span(), match.group())
        for match in matches
        if "@" in match.group() or sum(map(str.isdigit, _DATE.sub("", match.group()))) >= _DIGITS
    ]


def holding(look: Check) -> Filter:
    """Rows in which a check finds something in any message or reply by itself: personal data may stand anywhere."""

    def check(row: TrlRow) -> Reason | None:
        for place, text in _texts(row):
            for found in look([], text):
                evidence = {"in": place, "found": found.evidence, "span": list(found.span)}
                return Reason(f"holds {found.rule_id}", evidence, found.rule_id)
        return None

    return check


def leaking(unseen: Unseen) -> Filter:
    """Rows that share a run of words with a text that must stay unseen."""

    def check(row: TrlRow) -> Reason | None:
        for place, text in _texts(row):
            if (overlap := unseen.overlap(text)) is not None:
                of = {"suite": overlap.unseen.file, "place": overlap.unseen.place, "words": overlap.words}
                return Reason("gives away a suite", {"in": place} | of)
        return None

    return check


def other_language(wanted: str) -> Filter:
    """Rows that are surely in another language than `wanted`, an ISO 639-1 code. Short texts and doubtful ones pass.

    Raises SpiritLevelError if the library is missing or does not know the language.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise SpiritLevelError(
            "telling languages needs py3langid", remedy="pip install 'spiritlevel[curation]'"
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if wanted not in identifier.labels:
        known = ", ".join(sorted(map(str, identifier.labels)))
        raise SpiritLevelError(f"{wanted!r} is no language that can be told", remedy=f"Give one of: {known}.")

    def check(row: TrlRow) -> Reason | None:
        for place, text in _texts(row):
            if sum(map(str.isalpha, text)) >= _LETTERS:
                language, sure = identifier.classify(text)
                if language != wanted and sure >= _SURE:
                    evidence = {"in": place, "language": str(language), "probability": round(float(sure), 3)}
                    return Reason(f"not in {wanted}", evidence)
        return None

    return check


def _texts(row: TrlRow) -> list[tuple[str, str]]:
    """(where, text) of all that is said in a row."""
    prompt = [(f"prompt, message {number}", message["content"]) for number, message in enumerate(row.prompt, start=1)]
    return [*prompt, *row.replies.items()]
