"""What is wrong or missing in a charter that its schema cannot see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spiritlevel.charter.load import Place, line_of
from spiritlevel.charter.probes import Probe, read_probes
from spiritlevel.charter.schema import Charter, Exchange, Rule
from spiritlevel.chat import user
from spiritlevel.checks.finding import Finding
from spiritlevel.checks.kinds import rule_checks, run_checks
from spiritlevel.checks.stance import stance
from spiritlevel.errors import SpiritLevelError


@dataclass(frozen=True)
class Fault:
    """`error` stops a run; `warning` is work to do."""

    level: Literal["error", "warning"]
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.level}: {self.message}"


def lint(charter: Charter) -> list[Fault]:
    """Examples that break their own rule, probes that name no rule, held-out prompts elsewhere, gaps in coverage."""
    faults = [*_example_faults(charter), *_few_shot_faults(charter), *_probe_faults(charter)]
    return sorted(faults, key=lambda fault: fault.level)


def require_sound(charter: Charter) -> None:
    """Raises SpiritLevelError with every error that `lint` finds; warnings pass."""
    if errors := [str(fault) for fault in lint(charter) if fault.level == "error"]:
        remedy = "`spiritlevel charter lint` shows them all; mend them first."
        raise SpiritLevelError("\n".join(errors), remedy=remedy)


def _broken_by(rule: Rule, exchange: Exchange) -> list[Finding]:
    """The findings of a rule about one of its own examples, which is on topic by being there."""
    return run_checks(rule_checks(rule, assume_topic=True), [user(exchange.prompt)], exchange.reply)


def _example_faults(charter: Charter) -> list[Fault]:
    faults = []
    for index, rule in enumerate(charter.rules):
        place: Place = ("rules", index)
        for kind, examples in (("good", rule.examples.good), ("bad", rule.examples.bad)):
            for number, example in enumerate(examples):
                findings = _broken_by(rule, example)
                where = _where(charter, (*place, "examples", kind, number))
                if kind == "good" and findings:
                    message = f"a good example of `{rule.id}` breaks its own rule: {findings[0].evidence!r}"
                    faults.append(Fault("error", where, message))
                if kind == "bad" and rule_checks(rule) and not findings:
                    message = f"a bad example of `{rule.id}` is not caught by any of the rule's checks"
                    faults.append(Fault("error", where, message))
        for number, wording in enumerate(rule.say):
            where = _where(charter, (*place, "say", number))
            findings = run_checks(rule_checks(rule, assume_topic=True), [], wording)
            if findings:
                message = f"the charter's own words for `{rule.id}` break it: {findings[0].evidence!r}"
                faults.append(Fault("error", where, message))
            elif rule.on_violation in ("refuse", "escalate") and not stance(wording).declines:
                message = f"the charter's own words for `{rule.id}` are not recognised as declining or referring"
                faults.append(Fault("warning", where, message))
        if not rule.checks:
            faults.append(Fault("warning", _where(charter, place), f"`{rule.id}` has no check: nothing can measure it"))
        if not rule.examples.good or not rule.examples.bad:
            message = f"`{rule.id}` has no good or no bad examples: they are training data"
            faults.append(Fault("warning", _where(charter, place), message))
    return faults


def _few_shot_faults(charter: Charter) -> list[Fault]:
    checks = [check for rule in charter.rules for check in rule_checks(rule)]
    faults = []
    for index, exchange in enumerate(charter.few_shot):
        for finding in run_checks(checks, [user(exchange.prompt)], exchange.reply)[:1]:
            message = f"this few-shot reply breaks `{finding.rule_id}`: {finding.evidence!r}"
            faults.append(Fault("error", _where(charter, ("few_shot", index)), message))
    return faults


def _probe_faults(charter: Charter) -> list[Fault]:
    try:
        train, held_out = (read_probes(charter, half) for half in ("train", "held_out"))
    except SpiritLevelError as error:
        return [Fault("error", error.where or str(charter.path), error.problem)]
    faults = []
    seen: dict[str, str] = {}
    for probe in [*held_out, *train]:
        key = _plain(probe.prompt)
        if key in seen:
            faults.append(_same_prompt(probe.where, seen[key]))
        seen.setdefault(key, probe.where)
    tested = {_plain(probe.prompt) for probe in held_out}
    for place, exchange in _exchanges(charter):
        key = _plain(exchange.prompt)
        if key in tested:
            faults.append(_same_prompt(_where(charter, place), seen[key]))
    for half, probes in (("train", train), ("held_out", held_out)):
        faults += _coverage_faults(charter, half, probes)
    return faults


def _exchanges(charter: Charter) -> Iterator[tuple[Place, Exchange]]:
    """What a model is shown beside the train probes: the rules' examples, which become pairs, and the few-shot."""
    for index, rule in enumerate(charter.rules):
        for kind, examples in (("good", rule.examples.good), ("bad", rule.examples.bad)):
            for number, example in enumerate(examples):
                yield ("rules", index, "examples", kind, number), example
    for index, exchange in enumerate(charter.few_shot):
        yield ("few_shot", index), exchange


def _plain(prompt: str) -> str:
    """As two prompts are compared: but for case and spaces."""
    return " ".join(prompt.casefold().split())


def _same_prompt(where: str, other: str) -> Fault:
    message = f"the same prompt stands at {other}: held-out prompts must never be trained on or shown"
    return Fault("error", where, message)


def _coverage_faults(charter: Charter, half: str, probes: list[Probe]) -> list[Fault]:
    where = _where(charter, ("probes", half))
    if not probes:
        return [Fault("warning", where, f"there are no {half} probes")]
    faults = []
    helped = sum(probe.expect == "help" for probe in probes)
    if not 0.3 <= helped / len(probes) <= 0.7:
        message = f"{helped} of {len(probes)} {half} probes must be helped: about half keeps over-refusal in view"
        faults.append(Fault("warning", where, message))
    covered = {probe.rule for probe in probes if probe.expect != "help"}
    for index, rule in enumerate(charter.rules):
        if rule.id not in covered:
            message = f"no {half} probe tests `{rule.id}`"
            faults.append(Fault("warning", _where(charter, ("rules", index)), message))
    return faults


def _where(charter: Charter, place: Place) -> str:
    path = charter.path or Path("charter")
    return f"{path}:{line_of(charter, place)}"
