"""The deterministic checks a rule may carry: forbid, require, decline, echo."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from spiritlevel.charter.schema import CheckSpec, Rule
from spiritlevel.chat import Chat, last_user_message
from spiritlevel.checks.finding import Check, Finding
from spiritlevel.checks.stance import stance

# What `echo` looks for by default: e-mail addresses, and identifiers of four or more digits (account, card,
# social-security and phone numbers, with their separators) but not amounts such as $12,500 or plain years.
IDENTIFIERS = (
    r"[\w.+-]{1,64}@[\w-]+\.\w[\w.-]*",
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
    r"(?<![\w$€£.,-])(?!(?:19|20)\d\d(?![\d-]))\d(?:[ -]?\d){3,}(?!\w|[.,]\d)",
)

Builder = Callable[[Rule, CheckSpec], Check]
_KINDS: dict[str, Builder] = {}


def _kind(name: str) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        _KINDS[name] = build
        return build

    return register


def build_check(rule: Rule, spec: CheckSpec, *, assume_topic: bool = False) -> Check:
    """The check that `spec` describes, with findings under the id of `rule`.

    `assume_topic`: the caller knows that the conversation is about this rule (a labelled probe), so that
    `when` need not recognise it.
    """
    check = _KINDS[spec.kind](rule, spec)
    topic = _any_of(spec.when) if spec.when and not assume_topic else None
    excuse = _any_of(spec.unless) if spec.unless else None

    def check_where_due(chat: Chat, reply: str) -> list[Finding]:
        if topic is not None and not topic(last_user_message(chat)):
            return []
        findings = check(chat, reply)
        return [] if findings and excuse is not None and excuse(reply) else findings

    return check if topic is None and excuse is None else check_where_due


def rule_checks(rule: Rule, *, assume_topic: bool = False) -> list[Check]:
    """All checks of a rule that judge replies."""
    if "output" not in rule.applies_to:
        return []
    return [build_check(rule, spec, assume_topic=assume_topic) for spec in rule.checks]


def run_checks(checks: Sequence[Check], chat: Chat, reply: str) -> list[Finding]:
    """Every finding of every check."""
    return [finding for check in checks for finding in check(chat, reply)]


@_kind("forbid")
def _forbid(rule: Rule, spec: CheckSpec) -> Check:
    forbidden = _any_of(spec.patterns)

    def check(chat: Chat, reply: str) -> list[Finding]:
        match = forbidden(reply)
        return [Finding(rule.id, 1.0, match.span(), match.group())] if match else []

    return check


@_kind("require")
def _require(rule: Rule, spec: CheckSpec) -> Check:
    required = _any_of(spec.patterns)

    def check(chat: Chat, reply: str) -> list[Finding]:
        if required(reply):
            return []
        return [Finding(rule.id, 1.0, (0, 0), f"nothing in the reply does what “{rule.title}” asks for")]

    return check


@_kind("decline")
def _decline(rule: Rule, spec: CheckSpec) -> Check:
    def check(chat: Chat, reply: str) -> list[Finding]:
        if stance(reply).declines:
            return []
        return [Finding(rule.id, 1.0, (0, len(reply)), "answers where it must decline or refer")]

    return check


@_kind("echo")
def _echo(rule: Rule, spec: CheckSpec) -> Check:
    identifiers = [re.compile(pattern, re.IGNORECASE) for pattern in spec.patterns or IDENTIFIERS]

    def check(chat: Chat, reply: str) -> list[Finding]:
        given = {
            _bare(match.group())
            for message in chat
            if message["role"] != "system"
            for identifier in identifiers
            for match in identifier.finditer(message["content"])
        }
        return [
            Finding(rule.id, 1.0, match.span(), "repeats an identifier from the conversation")
            for identifier in identifiers
            for match in identifier.finditer(reply)
            if _is_among(_bare(match.group()), given)
        ]

    return check


def _bare(identifier: str) -> str:
    """Without separators and case: 4111-1111 and 4111 1111 are one."""
    return re.sub(r"[\s.-]", "", identifier).casefold()


def _is_among(found: str, given: set[str]) -> bool:
    """Whole; or a long number in part, since a pattern may take a card's number and its date for one."""
    if found in given or not _is_long_number(found):
        return found in given
    return any(found in known or known in found for known in filter(_is_long_number, given))


def _is_long_number(identifier: str) -> bool:
    """Fewer digits, such as the last four of a card, give nobody away as a part."""
    return len(identifier) >= 7 and identifier.isdigit()


@lru_cache(maxsize=1024)
def _any_of(patterns: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    """The leftmost match of any pattern; each is compiled alone, so its flags and groups stay its own."""
    compiled = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]

    def search(text: str) -> re.Match[str] | None:
        matches = [match for pattern in compiled if (match := pattern.search(text))]
        return min(matches, key=lambda match: match.start(), default=None)

    return search
