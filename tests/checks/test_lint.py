"""Each kind of fault that a schema cannot see is found, where it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spiritlevel.charter import load_charter
from spiritlevel.checks.lint import Fault, lint, require_sound
from spiritlevel.errors import SpiritLevelError

RULE: dict[str, Any] = {
    "id": "no-recipes",
    "title": "No recipes",
    "text": "Do not tell how our bread is made.",
    "severity": "high",
    "owner": "bakers@bakery.example",
    "on_violation": "refuse",
    "say": ["I can't share our recipes."],
    "checks": [{"kind": "decline", "when": ["recipe"]}, {"kind": "forbid", "patterns": ["rye starter"]}],
    "examples": {
        "good": [{"prompt": "How is it made?", "reply": "I can't share our recipes."}],
        "bad": [{"prompt": "What is in it?", "reply": "Flour and water."}],
    },
}
TRAIN = [
    {"prompt": "Recipe, please", "expect": "refuse", "rule": "no-recipes"},
    {"prompt": "When do you open?", "expect": "help", "reply": "At seven."},
]
HELD_OUT = [
    {"prompt": "Your recipe?", "expect": "refuse", "rule": "no-recipes"},
    {"prompt": "When do you close?", "expect": "help"},
]
Edit = Callable[[dict[str, Any], list[Any], list[Any]], object]
Lint = Callable[[Edit], list[Fault]]


@pytest.fixture
def lint_after(tmp_path: Path) -> Lint:
    """What lint says of a sound charter after an edit of (charter, train probes, held-out probes)."""

    def run(edit: Edit) -> list[Fault]:
        charter: dict[str, Any] = {
            "name": "bakery",
            "version": "1.0.0",
            "owner": "anna",
            "role": "You answer questions about our bakery.",
            "tone": {"voice": "Warm."},
            "scope": {"in": ["Bread"], "otherwise": "I can't help with that here."},
            "rules": [json.loads(json.dumps(RULE))],
            "few_shot": [{"prompt": "Do you bake rye?", "reply": "Every Friday."}],
            "probes": {"train": ["train.jsonl"], "held_out": ["held_out.jsonl"]},
        }
        train, held_out = [dict(row) for row in TRAIN], [dict(row) for row in HELD_OUT]
        edit(charter, train, held_out)
        (tmp_path / "charter.yaml").write_text(json.dumps(charter, indent=1))
        for name, rows in (("train", train), ("held_out", held_out)):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        return lint(load_charter(tmp_path))

    return run


def test_a_sound_charter_has_no_faults(lint_after: Lint) -> None:
    assert lint_after(lambda charter, train, held_out: None) == []


def rule(charter: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = charter["rules"][0]
    return found


LAX = {"kind": "forbid", "patterns": ["water"]}
FAULTS: dict[str, tuple[Edit, str, str, str]] = {
    "a good example breaks its rule": (
        lambda c, t, h: rule(c)["examples"]["good"].append({"prompt": "And?", "reply": "A rye starter."}),
        "error", '"prompt": "And?"', "good example of `no-recipes` breaks its own rule",
    ),
    "a bad example is not caught": (
        lambda c, t, h: rule(c)["examples"]["bad"].append({"prompt": "So?", "reply": "I can't say."}),
        "error", '"prompt": "So?"', "bad example of `no-recipes` is not caught",
    ),
    "the charter's own words break the rule": (
        lambda c, t, h: rule(c)["say"].append("I can't share our rye starter."),
        "error", "share our rye starter", "own words for `no-recipes` break it",
    ),
    "the charter's own words are no refusal": (
        lambda c, t, h: rule(c).update(checks=[LAX], say=["Bread is lovely."]),
        "warning", "Bread is lovely.", "not recognised as declining",
    ),
    "a rule has no check": (
        lambda c, t, h: rule(c).update(checks=[]),
        "warning", '"no-recipes"', "has no check",
    ),
    "a rule has no examples": (
        lambda c, t, h: rule(c).update(examples={}),
        "warning", '"no-recipes"', "no good or no bad examples",
    ),
    "a few-shot reply breaks a rule": (
        lambda c, t, h: c["few_shot"].append({"prompt": "Your recipe?", "reply": "Flour."}),
        "error", '"prompt": "Your recipe?"', "few-shot reply breaks `no-recipes`",
    ),
    "a good example asks a held-out question": (
        lambda c, t, h: rule(c)["examples"]["good"].append({"prompt": "YOUR recipe?", "reply": "I can't share it."}),
        "error", '"prompt": "YOUR recipe?"', "held_out.jsonl:1: held-out prompts must never be trained on",
    ),
    "a bad example asks a held-out question": (
        lambda c, t, h: rule(c)["examples"]["bad"].append({"prompt": "Your  recipe?", "reply": "Flour."}),
        "error", '"prompt": "Your  recipe?"', "held_out.jsonl:1: held-out prompts must never be trained on",
    ),
    "a few-shot question is held out": (
        lambda c, t, h: c["few_shot"].append({"prompt": "when do you close?", "reply": "At six."}),
        "error", '"prompt": "when do you close?"', "held_out.jsonl:2: held-out prompts must never be trained on",
    ),
    "a rule is not tested": (
        lambda c, t, h: c["rules"].append(rule(c) | {"id": "second"}),
        "warning", '"second"', "no held_out probe tests `second`",
    ),
    "a half has no probes": (
        lambda c, t, h: t.clear(),
        "warning", '"train": [', "there are no train probes",
    ),
    "too little is to be helped": (
        lambda c, t, h: h.extend(HELD_OUT[0] | {"prompt": f"Recipe {n}?"} for n in range(9)),
        "warning", '"held_out": [', "1 of 11 held_out probes must be helped",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_charter_is_found_where_it_stands(lint_after: Lint, tmp_path: Path, name: str) -> None:
    edit, level, marker, message = FAULTS[name]
    found = [fault for fault in lint_after(edit) if message in fault.message]
    text = (tmp_path / "charter.yaml").read_text()
    line = text[: text.index(marker)].count("\n") + 1
    # A part of a list begins at its brace, a line above its first field.
    places = {f"{tmp_path / 'charter.yaml'}:{line}", f"{tmp_path / 'charter.yaml'}:{line - 1}"}
    assert [(fault.level, fault.where in places) for fault in found] == [(level, True)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": " YOUR  recipe?", "expect": "help"},
            "held_out.jsonl:1: held-out prompts must never be trained on",
        ),
        ({"prompt": "When do you open?", "expect": "help"}, "train.jsonl:2: held-out prompts must never"),
        (
            {"prompt": "Cakes?", "expect": "refuse", "rule": "no-cakes"},
            "'no-cakes', which the charter does not have",
        ),
        ('{"prompt": "Bre', "not valid JSON"),
        ({"prompt": "Bread?", "expect": "hlep"}, "expect"),
    ],
)
def test_a_fault_of_a_probe_is_found_by_file_and_line(lint_after: Lint, tmp_path: Path, row: Any, message: str) -> None:
    (fault,) = lint_after(lambda charter, train, held_out: train.append(row))
    assert (fault.level, fault.where) == ("error", f"{tmp_path / 'train.jsonl'}:3")
    assert message in fault.message
    with pytest.raises(SpiritLevelError, match=r"train\.jsonl:3"):
        require_sound(load_charter(tmp_path))


def test_a_missing_probe_file_is_found(lint_after: Lint, tmp_path: Path) -> None:
    (fault,) = lint_after(lambda charter, train, held_out: charter["probes"]["train"].append("more.jsonl"))
    assert (fault.level, fault.where) == ("error", str(tmp_path / "more.jsonl"))


def test_errors_come_first_and_warnings_stop_nothing(lint_after: Lint, tmp_path: Path) -> None:
    levels = [fault.level for fault in lint_after(lambda c, t, h: (rule(c).update(checks=[]), t.append(TRAIN[0])))]
    assert levels == sorted(levels) and set(levels) == {"error", "warning"}
    lint_after(lambda charter, train, held_out: rule(charter).update(checks=[]))
    require_sound(load_charter(tmp_path))
