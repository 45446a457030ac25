"""What a check returns, and what a check is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from spiritlevel.chat import Chat


@dataclass(frozen=True)
class Finding:
    """One violation that a check saw.

    rule_id: the rule it is about; score: how sure, in [0, 1]; span: (start, end) characters of the reply,
    (0, 0) when the fault is something missing; evidence: the words, for a person to read.
    """

    rule_id: str
    score: float
    span: tuple[int, int]
    evidence: str


class Check(Protocol):
    """`check(chat, reply)`: the findings about a reply to a chat. A check never changes text."""

    def __call__(self, chat: Chat, reply: str) -> list[Finding]: ...
