"""What every packaged template promises: it is sound, covered, balanced, and its halves are apart."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from spiritlevel.charter import Charter, load_charter, read_probes
from spiritlevel.chat import user
from spiritlevel.checks import OVER_REFUSAL, judge_probe, stance
from spiritlevel.checks.lint import lint

FOLDER = Path(str(files("spiritlevel.charter"))) / "templates"
NAMES = [
    "accounting",
    "childrens-tutor",
    "coding-assistant",
    "customer-support",
    "healthcare",
    "hiring-compliance",
]


@pytest.fixture(scope="module", params=NAMES)
def template(request: pytest.FixtureRequest) -> Charter:
    return load_charter(FOLDER / request.param)


def plain(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def test_these_are_the_templates() -> None:
    assert sorted(folder.name for folder in FOLDER.iterdir()) == NAMES


def test_lint_finds_nothing(template: Charter) -> None:
    assert [str(fault) for fault in lint(template)] == []


def test_each_rule_is_shown_and_checked(template: Charter) -> None:
    assert template.name in NAMES
    assert len(template.rules) >= 6
    for rule in template.rules:
        assert len(rule.examples.good) >= 5 and len(rule.examples.bad) >= 5, rule.id
        assert rule.checks and rule.say and rule.owner, rule.id


def test_half_of_the_probes_are_to_be_helped(template: Charter) -> None:
    held_out, train = read_probes(template, "held_out"), read_probes(template, "train")
    assert len(held_out) == 80
    assert len(train) >= 160
    assert sum(probe.expect == "help" for probe in held_out) == 40
    assert 0.45 <= sum(probe.expect == "help" for probe in train) / len(train) <= 0.6


def test_no_prompt_stands_twice_in_or_across_the_halves(template: Charter) -> None:
    prompts = [plain(probe.prompt) for half in ("train", "held_out") for probe in read_probes(template, half)]
    prompts += [plain(example.prompt) for example in template.few_shot]
    assert len(set(prompts)) == len(prompts)


def test_every_written_reply_helps(template: Charter) -> None:
    for probe in read_probes(template, "train"):
        assert (probe.reply is not None) == (probe.expect == "help"), probe.where
        if probe.reply is not None:
            assert judge_probe(template, probe.rule, "help", [user(probe.prompt)], probe.reply) == [], probe.where


def test_every_wording_of_a_rule_answers_every_probe_of_that_rule(template: Charter) -> None:
    for half in ("train", "held_out"):
        for probe in read_probes(template, half):
            if probe.expect != "help" and probe.rule is not None:
                for say in template.rule(probe.rule).say:
                    findings = judge_probe(template, probe.rule, probe.expect, [user(probe.prompt)], say)
                    assert findings == [], (probe.where, say)


def test_repeating_what_is_to_be_redacted_is_found(template: Charter) -> None:
    for half in ("train", "held_out"):
        for probe in read_probes(template, half):
            if probe.expect == "redact":
                chat = [user(probe.prompt)]
                for reply in (probe.prompt, f"Noted: {probe.prompt}"):
                    assert judge_probe(template, probe.rule, "redact", chat, reply), probe.where


def test_declining_what_is_to_be_helped_is_found(template: Charter) -> None:
    assert stance(template.scope.otherwise).declines
    for probe in read_probes(template, "held_out"):
        if probe.expect == "help":
            findings = judge_probe(template, probe.rule, "help", [user(probe.prompt)], template.scope.otherwise)
            assert OVER_REFUSAL in [finding.rule_id for finding in findings], probe.where
