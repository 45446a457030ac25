"""A difference says what it makes stale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.charter import (
    Change,
    Charter,
    Probe,
    Rule,
    constitution,
    diff,
    diff_probes,
    few_shot_messages,
    judge_question,
    load_charter,
    system_prompt,
)
from spiritlevel.chat import Chat, user
from spiritlevel.checks import judge_probe
from spiritlevel.data import ContrastConfig, contrast_pairs
from spiritlevel.models import Reply
from spiritlevel.store import ContentStore

Document = Callable[[], dict[str, Any]]
RULES = ["a", "b", "c", "d"]
PROBES = [
    Probe(prompt="Your recipe?", expect="refuse", rule="no-recipes"),
    Probe(prompt="When do you open?", expect="help"),
]


def with_rules(document: dict[str, Any], names: list[str]) -> Charter:
    rule = document["rules"][1]
    document |= {"rules": [rule | {"id": name} for name in names], "gates": [], "monitors": []}
    return Charter.model_validate(document)


class Baker:
    """Gives the recipe away when asked bare; under a charter, refuses in words that depend on all it was told."""

    name = digest = "baker"

    def plan(self, chats: Sequence[Chat]) -> list[list[int]]:
        return [[*range(len(chats))]]

    def generate(self, chats: Sequence[Chat], *, on_finish: Callable[[int, Reply], None], **_: object) -> None:
        for index, chat in enumerate(chats):
            mark = hashlib.sha256(json.dumps(chat[:-1]).encode()).hexdigest()[:8]
            reply = f"I can't share our recipes. {mark}" if len(chat) > 1 else "I can't say. Mix a rye starter."
            on_finish(index, Reply("We open at seven." if "open" in chat[-1]["content"] else reply, 5, True))


def made_from(charter: Charter, folder: Path) -> dict[str, Any]:
    """What is made from a charter, by the name under which `diff` calls it stale."""
    pairs, _ = contrast_pairs(charter, PROBES, Baker(), ContrastConfig(), store=ContentStore(folder))  # type: ignore[arg-type]
    found = judge_probe(charter, "no-recipes", "refuse", [user("Your recipe?")], "I can't say. Mix a rye starter.")
    return {
        "system prompt": system_prompt(charter),
        "few-shot messages": few_shot_messages(charter.few_shot),
        "judges": {rule.id: judge_question(rule) for rule in charter.rules},
        "constitution": constitution(charter),
        "training pairs": [pair.model_dump(exclude={"author", "provenance"}) for pair in pairs],
        "measurements": bool(found),
    }


def test_a_charter_does_not_differ_from_itself(document: Document) -> None:
    charter = Charter.model_validate(document())
    assert diff(charter, charter) == diff(charter, Charter.model_validate(document())) == []


RULE_EDITS: dict[str, tuple[Any, set[str]]] = {
    "title": ("Secret recipes", {"system prompt", "judges", "training pairs", "trained model"}),
    "text": (
        "Keep the sourdough secret.",
        {"system prompt", "judges", "constitution", "training pairs", "trained model", "approvals"},
    ),
    "severity": ("low", {"approvals"}),
    "owner": ("bert@bakery.example", {"approvals"}),
    "applies_to": (["input"], {"guards", "measurements", "training pairs", "trained model"}),
    "on_violation": ("flag", {"guards"}),
    "say": (["That is our secret."], {"guards", "training pairs", "trained model"}),
    "checks": (
        [{"kind": "forbid", "patterns": ["yeast"]}],
        {"guards", "measurements", "training pairs", "trained model"},
    ),
    "examples": (
        {"bad": [{"prompt": "Flour?", "reply": "Mix a rye starter!"}]},
        {"judges", "training pairs", "trained model"},
    ),
}
CHARTER_EDITS: dict[str, tuple[Any, set[str]]] = {
    "name": ("baker", set()),
    "version": ("2.0.0", set()),
    "owner": ("bert@bakery.example", {"approvals"}),
    "role": ("You bake.", {"system prompt", "training pairs", "trained model"}),
    "tone": ({"voice": "Cool."}, {"system prompt"}),
    "scope": ({"in": ["Rolls"], "otherwise": "I can't."}, {"system prompt", "training pairs", "trained model"}),
    "principles": ([{"id": "new", "text": "Be new."}], {"constitution"}),
    "high_stakes": ([], {"review queue"}),
    "few_shot": ([], {"few-shot messages"}),
    "bounds": ({"leakage": 0.5}, {"calibration", "gates"}),
    "gates": ([], {"gates"}),
    "monitors": ([], {"monitors"}),
    "probes": ({"train": ["other.jsonl"]}, set()),
}


def test_every_field_is_edited_here() -> None:
    assert {*RULE_EDITS} == {*Rule.model_fields} - {"id"}
    assert {*CHARTER_EDITS} == {*Charter.model_fields} - {"rules"}


@pytest.mark.parametrize(
    ("part", "field"), [("no-recipes", field) for field in RULE_EDITS] + [("", field) for field in CHARTER_EDITS]
)
def test_a_new_field_makes_stale_what_is_made_from_it_and_nothing_else(
    document: Document, tmp_path: Path, part: str, field: str
) -> None:
    value, stale = RULE_EDITS[field] if part else CHARTER_EDITS[field]
    seen = set()
    # A rule without words of its own declines in the words of the scope.
    for words in (["I can't share our recipes."], []):
        old, new = document(), document()
        for draft in (old, new):
            draft["rules"] = [draft["rules"][0] | {"say": words}]  # under the other rule nothing may be helped
        if part:
            new["rules"][0][field] = value
        else:
            new[field] = value
        before, after = Charter.model_validate(old), Charter.model_validate(new)
        (change,) = diff(before, after)
        assert (change.kind, change.part, change.fields) == ("changed", part or field, (field,))
        assert set(change.stale) == stale
        made, made_again = made_from(before, tmp_path), made_from(after, tmp_path)
        seen |= {name for name in made if made[name] != made_again[name]}
    assert seen == stale & {*made}


def test_a_rule_that_comes_goes_or_moves_makes_stale_what_is_made_from_rules(
    document: Document, tmp_path: Path
) -> None:
    whole, turned, short = document(), document(), document()
    turned["rules"].reverse()
    del short["rules"][1]
    charter = Charter.model_validate(whole)
    made = made_from(charter, tmp_path)
    for kind, other in (("changed", turned), ("removed", short)):
        edited = Charter.model_validate(other)
        (change,) = diff(charter, edited)
        assert change.kind == kind
        made_again = made_from(edited, tmp_path)
        assert {name for name in made if made[name] != made_again[name]} <= set(change.stale)
        assert {"system prompt", "constitution", "trained model"} <= set(change.stale)


PROBE_ROWS = [{"prompt": f"Bread {number}?", "expect": "help"} for number in range(4)]
EDITED = PROBE_ROWS[0] | {"reply": "Yes."}


@pytest.mark.parametrize(
    ("half", "rows", "fields", "stale"),
    [
        ("train", PROBE_ROWS[:1], ("3 removed",), {"training pairs", "trained model"}),
        ("train", [*PROBE_ROWS[::-1]], ("order",), {"training pairs", "trained model"}),
        ("held_out", [EDITED, *PROBE_ROWS[2:]], ("1 added", "2 removed"), {"measurements"}),
        ("held_out", [*PROBE_ROWS, EDITED], ("1 added",), {"measurements"}),
    ],
)
def test_probes_are_compared_by_what_stands_in_the_files(
    document: Document, tmp_path: Path, half: str, rows: list[Any], fields: tuple[str, ...], stale: set[str]
) -> None:
    def charter(folder: str, **halves: list[Any]) -> Charter:
        (tmp_path / folder).mkdir()
        for name, probes in halves.items():
            (tmp_path / folder / name).write_text("\n\n".join(map(json.dumps, probes)))
        path = tmp_path / folder / "charter.yaml"
        path.write_text(json.dumps(document() | {"probes": {"train": ["train"], "held_out": ["held_out"]}}))
        return load_charter(path)

    halves = {"train": PROBE_ROWS, "held_out": PROBE_ROWS}
    old = charter("old", **halves)
    assert diff_probes(old, charter("same", **halves)) == []
    (change,) = diff_probes(old, charter("new", **halves | {half: rows}))
    assert change == Change("changed", f"probes.{half}", fields, tuple(sorted(stale)))


@given(*[st.lists(st.sampled_from(RULES), min_size=1, unique=True)] * 2)
def test_what_one_way_adds_the_other_way_removes(document: Document, before: list[str], after: list[str]) -> None:
    old, new = with_rules(document(), before), with_rules(document(), after)
    there, back = diff(old, new), diff(new, old)
    for name in RULES:
        kinds = [change.kind for change in there if change.part == name]
        assert kinds == ["added"] * (name in after and name not in before) + ["removed"] * (
            name in before and name not in after
        )
    swap = {"added": "removed", "removed": "added", "changed": "changed"}
    assert {(swap[change.kind], change.part) for change in there} == {(change.kind, change.part) for change in back}
    assert (there == []) == (before == after)
