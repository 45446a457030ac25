"""What changed between two versions of a charter, and what that makes stale."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from spiritlevel.charter.probes import read_probes
from spiritlevel.charter.schema import Charter, Rule

Kind = Literal["added", "removed", "changed"]

_PAIRS = {"training pairs", "trained model"}
# What each field of a charter or rule feeds, so that a change says what has to be made again.
_RULE_FEEDS: dict[str, set[str]] = {
    "title": {"system prompt", "judges", *_PAIRS},
    "text": {"system prompt", "judges", "constitution", "approvals", *_PAIRS},
    "severity": {"approvals"},
    "owner": {"approvals"},
    "applies_to": {"guards", "measurements", *_PAIRS},
    "on_violation": {"guards"},
    "say": {"guards", *_PAIRS},
    "checks": {"guards", "measurements", *_PAIRS},
    "examples": {"judges", *_PAIRS},
}
_CHARTER_FEEDS: dict[str, set[str]] = {
    "name": set(),
    "version": set(),
    "owner": {"approvals"},
    "role": {"system prompt", *_PAIRS},
    "tone": {"system prompt"},
    "scope": {"system prompt", *_PAIRS},
    "principles": {"constitution"},
    "high_stakes": {"review queue"},
    "few_shot": {"few-shot messages"},
    "bounds": {"calibration", "gates"},
    "gates": {"gates"},
    "monitors": {"monitors"},
    "probes": set(),  # the names of the files; `diff_probes` compares what stands in them
}
_PROBE_FEEDS: dict[Literal["train", "held_out"], set[str]] = {"train": _PAIRS, "held_out": {"measurements"}}
# The rules are numbered where a model reads them, and everything made from them follows their order.
_ORDER_FEEDS = {"system prompt", "constitution", *_PAIRS}


@dataclass(frozen=True)
class Change:
    """One difference: `part` is a rule id, a field of the charter or a half of its probes, `fields` what differs."""

    kind: Kind
    part: str
    fields: tuple[str, ...]
    stale: tuple[str, ...]


def diff(old: Charter, new: Charter) -> list[Change]:
    """Changes by rule and by field, in the order of the new charter; of the probes, only the names of the files."""
    before, after = {rule.id: rule for rule in old.rules}, {rule.id: rule for rule in new.rules}
    everything = _stale(*_RULE_FEEDS.values())
    changes = []
    for rule in new.rules:
        if rule.id not in before:
            changes.append(Change("added", rule.id, (), everything))
        elif fields := _changed(before[rule.id], rule):
            changes.append(Change("changed", rule.id, fields, _stale(*(_RULE_FEEDS[field] for field in fields))))
    changes += [Change("removed", rule.id, (), everything) for rule in old.rules if rule.id not in after]
    if [name for name in before if name in after] != [name for name in after if name in before]:
        changes.append(Change("changed", "rules", ("order",), _stale(_ORDER_FEEDS)))
    for field, feeds in _CHARTER_FEEDS.items():
        if getattr(old, field) != getattr(new, field):
            changes.append(Change("changed", field, (field,), _stale(feeds)))
    return changes


def diff_probes(old: Charter, new: Charter) -> list[Change]:
    """Changes of what stands in the probe files, by half; a probe that was edited counts as removed and added.

    Raises SpiritLevelError as `read_probes` does.
    """
    changes = []
    for half, feeds in _PROBE_FEEDS.items():
        before, after = ([probe.model_dump_json() for probe in read_probes(charter, half)] for charter in (old, new))
        counts = {"added": Counter(after) - Counter(before), "removed": Counter(before) - Counter(after)}
        fields = tuple(f"{count.total()} {kind}" for kind, count in counts.items() if count)
        if before != after:
            changes.append(Change("changed", f"probes.{half}", fields or ("order",), _stale(feeds)))
    return changes


def _changed(old: Rule, new: Rule) -> tuple[str, ...]:
    return tuple(field for field in _RULE_FEEDS if getattr(old, field) != getattr(new, field))


def _stale(*feeds: set[str]) -> tuple[str, ...]:
    return tuple(sorted(set().union(*feeds)))
