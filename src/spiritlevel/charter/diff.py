"""What changed between two versions of a charter, and what that makes stale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spiritlevel.charter.schema import Charter, Rule

Kind = Literal["added", "removed", "changed"]

# What each field of a charter or rule feeds, so that a change says what has to be made again.
_RULE_FEEDS = {
    "title": {"system prompt"},
    "text": {"system prompt", "training pairs", "judges", "approvals"},
    "severity": {"gates", "approvals"},
    "owner": {"approvals"},
    "applies_to": {"guards", "measurements"},
    "on_violation": {"guards", "training pairs"},
    "say": {"training pairs", "guards"},
    "checks": {"guards", "measurements", "training pairs"},
    "examples": {"training pairs", "judges"},
}
_CHARTER_FEEDS: dict[str, set[str]] = {
    "name": set(),
    "version": set(),
    "owner": {"approvals"},
    "role": {"system prompt", "training pairs"},
    "tone": {"system prompt", "training pairs"},
    "scope": {"system prompt", "training pairs"},
    "principles": {"constitution"},
    "high_stakes": {"review queue"},
    "few_shot": {"system prompt", "training pairs"},
    "bounds": {"calibration", "gates"},
    "gates": {"gates"},
    "monitors": {"monitors"},
    "probes": {"measurements", "training pairs"},
}
# The rules are numbered where a model reads them.
_ORDER_FEEDS = ("system prompt", "training pairs")


@dataclass(frozen=True)
class Change:
    """One difference: `part` is a rule id or a field of the charter, `fields` what differs inside it."""

    kind: Kind
    part: str
    fields: tuple[str, ...]
    stale: tuple[str, ...]


def diff(old: Charter, new: Charter) -> list[Change]:
    """Changes by rule and by field, in the order of the new charter."""
    before, after = {rule.id: rule for rule in old.rules}, {rule.id: rule for rule in new.rules}
    everything = tuple(sorted(set().union(*_RULE_FEEDS.values())))
    changes = []
    for rule in new.rules:
        if rule.id not in before:
            changes.append(Change("added", rule.id, (), everything))
        elif fields := _changed(before[rule.id], rule):
            changes.append(Change("changed", rule.id, fields, _stale(_RULE_FEEDS, fields)))
    changes += [Change("removed", rule.id, (), everything) for rule in old.rules if rule.id not in after]
    if [name for name in before if name in after] != [name for name in after if name in before]:
        changes.append(Change("changed", "rules", ("order",), _ORDER_FEEDS))
    for field in _CHARTER_FEEDS:
        if getattr(old, field) != getattr(new, field):
            changes.append(Change("changed", field, (field,), _stale(_CHARTER_FEEDS, (field,))))
    return changes


def _changed(old: Rule, new: Rule) -> tuple[str, ...]:
    return tuple(field for field in _RULE_FEEDS if getattr(old, field) != getattr(new, field))


def _stale(feeds: dict[str, set[str]], fields: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set().union(*(feeds[field] for field in fields))))
