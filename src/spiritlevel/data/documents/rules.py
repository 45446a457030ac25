"""The question that a written rule answers: "Never commit secrets." answers "May I commit secrets?"."""

from __future__ import annotations

import re

from spiritlevel.data.documents.document import Document

_MOST_WORDS = 16
_FORBIDS = re.compile(r"(?:never|do not|don['’]t)\s+(?P<act>.+)", re.IGNORECASE)
_DEMANDS = re.compile(r"always\s+(?P<act>.+)", re.IGNORECASE)
_WARNS = re.compile(r"avoid\s+(?P<what>.+)", re.IGNORECASE)
_PREFERS = re.compile(r"prefer\s+(?P<one>.+?)\s+(?:over|to|rather than|instead of)\s+(?P<other>.+)", re.IGNORECASE)
_NAMES = re.compile(r"use\s+(?P<what>.+?)\s+(?P<purpose>(?:for|when|if|instead of|to)\s+.+)", re.IGNORECASE)
_OBLIGES = re.compile(
    r"(?P<who>(?:[\w`'’.-]+\s+){0,4}[\w`'’.-]+)\s+(?P<verb>must|should|shall)\s+(?:not\s+|never\s+|always\s+)?(?P<what>.+)",
    re.IGNORECASE,
)
_ENDS = re.compile(r"[;,:(—–]|\s-\s|[.!?](?:\s|$)|\b(?:because|so that|since|unless)\b", re.IGNORECASE)
_YOURS = re.compile(r"\b(?:your|yours|yourself|you)\b", re.IGNORECASE)
_MINE = {"your": "my", "yours": "mine", "yourself": "myself", "you": "I"}


def rule_question(words: str, document: Document) -> str:
    """A question in the first person that `words`, a rule without markup, answers; empty if it is no such rule."""
    clause = _ENDS.split(words, maxsplit=1)[0].strip()
    if not 2 < len(clause.split()) <= _MOST_WORDS:
        return ""
    if match := _FORBIDS.fullmatch(clause):
        return f"May I {_mine(match['act'])}?"
    if match := _DEMANDS.fullmatch(clause):
        return f"Do I have to {_mine(match['act'])}?"
    if match := _WARNS.fullmatch(clause):
        return f"Is anything wrong with {_mine(match['what'])}?"
    if match := _PREFERS.fullmatch(clause):
        # In the order of the alphabet: the place must not give the answer away.
        first, second = sorted((match["one"], match["other"]), key=str.casefold)
        return f"Which do we prefer, {first} or {second}?"
    if match := _NAMES.fullmatch(clause):
        return f"What do I use {_mine(match['purpose'])}?"
    if (match := _OBLIGES.fullmatch(clause)) and match["who"].casefold() not in ("you", "we", "it", "this", "that"):
        return f"{match['verb'].capitalize()} {_inside(match['who'], document)} {match['what']}?"
    return ""


def _mine(words: str) -> str:
    """What is said to you, as you would say it."""
    return re.sub(
        r"\b(?:your|yours|yourself|you)\b", lambda match: _MINE[match[0].casefold()], words, flags=re.IGNORECASE
    )


def _inside(words: str, document: Document) -> str:
    """The start of a sentence as it stands within one: in lower case, if the document ever writes it so."""
    first, _, rest = words.partition(" ")
    lowered = first[0].lower() + first[1:]
    seen = re.search(rf"(?<![\w.]){re.escape(lowered)}(?!\w)", document.text)
    return words if first == lowered or seen is None else f"{lowered} {rest}".strip()
