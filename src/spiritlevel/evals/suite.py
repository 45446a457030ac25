"""The charter's own suite: every held-out probe answered and judged, rule by rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spiritlevel.charter import Charter, Probe
from spiritlevel.chat import user
from spiritlevel.checks import OVER_REFUSAL, Expectation, judge_probe, repetitive
from spiritlevel.models import ChatModel, answer_all
from spiritlevel.stats import PairedChange, Rate, paired_change, wilson
from spiritlevel.store import ContentStore


@dataclass(frozen=True)
class Case:
    """One probe, the reply to it and what was wrong with it (nothing, if `findings` is empty)."""

    probe: str
    rule: str | None
    expect: Expectation
    prompt: str
    reply: str
    findings: tuple[dict[str, Any], ...]

    @property
    def violated(self) -> bool:
        """A question that must be declined was not, or data were repeated: leakage."""
        return self.expect != "help" and bool(self.findings)

    @property
    def over_refused(self) -> bool:
        """A question that must be helped was refused, referred away or answered with nothing."""
        return self.expect == "help" and any(finding["rule_id"] == OVER_REFUSAL for finding in self.findings)


def measure(
    charter: Charter,
    probes: Sequence[Probe],
    model: ChatModel,
    *,
    store: ContentStore,
    max_new_tokens: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[Case]:
    """Answer every probe greedily, without any prompt, and judge the replies.

    Replies are kept in `store`: judging again, or by other checks, generates nothing.
    """
    replies = answer_all(
        model,
        [[user(probe.prompt)] for probe in probes],
        store=store,
        max_new_tokens=max_new_tokens,
        on_progress=on_progress,
    )
    return [judge(charter, probe, reply.text) for probe, reply in zip(probes, replies, strict=True)]


def judge(charter: Charter, probe: Probe, reply: str) -> Case:
    findings = judge_probe(charter, probe.rule, probe.expect, [user(probe.prompt)], reply)
    found = tuple(asdict(finding) for finding in findings)
    return Case(probe.id, probe.rule, probe.expect, probe.prompt, reply, found)


@dataclass(frozen=True)
class Comparison:
    """One row of the table: a measure before and after, on the same probes."""

    measure: str
    before: Rate
    after: Rate
    change: PairedChange


def compare(charter: Charter, before: Sequence[Case], after: Sequence[Case], confidence: float) -> list[Comparison]:
    """Leakage in all, over-refusal, rules broken while helping, helpful answers that repeat themselves, and the
    leakage of each rule; lower is better.

    Raises ValueError unless both hold the same probes in the same order.
    """
    if [case.probe for case in before] != [case.probe for case in after]:
        raise ValueError("before and after must be measured on the same probes")

    def row(name: str, concerns: Callable[[Case], bool], bad: Callable[[Case], bool]) -> Comparison:
        old, new = ([bad(case) for case in cases if concerns(case)] for cases in (before, after))
        rate_before, rate_after = (wilson(sum(hits), len(hits), confidence) for hits in (old, new))
        return Comparison(name, rate_before, rate_after, paired_change(old, new, confidence))

    def helped(case: Case) -> bool:
        return case.expect == "help"

    def declined_under(rule_id: str) -> Callable[[Case], bool]:
        return lambda case: not helped(case) and case.rule == rule_id

    def broken(case: Case) -> bool:
        return any(finding["rule_id"] != OVER_REFUSAL for finding in case.findings)

    def violated(case: Case) -> bool:
        return case.violated

    return [
        row("leakage", lambda case: not helped(case), violated),
        row(OVER_REFUSAL, helped, lambda case: case.over_refused),
        row("broken_while_helping", helped, broken),
        row("repetitive_help", helped, lambda case: repetitive(case.reply)),
        *(row(rule.id, declined_under(rule.id), violated) for rule in charter.rules),
    ]
