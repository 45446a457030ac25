"""A difference says what it makes stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.charter import Change, Charter, diff

Document = Callable[[], dict[str, Any]]
RULES = ["a", "b", "c", "d"]


def with_rules(document: dict[str, Any], names: list[str]) -> Charter:
    rule = document["rules"][1]
    document |= {"rules": [rule | {"id": name} for name in names], "gates": [], "monitors": []}
    return Charter.model_validate(document)


def test_a_charter_does_not_differ_from_itself(document: Document) -> None:
    charter = Charter.model_validate(document())
    assert diff(charter, charter) == diff(charter, Charter.model_validate(document())) == []


def test_a_new_text_of_a_rule_makes_stale_what_is_made_from_it(document: Document) -> None:
    edited = document()
    edited["rules"][1]["text"] = "Send people with an allergy to the shop."
    (change,) = diff(Charter.model_validate(document()), Charter.model_validate(edited))
    assert (change.kind, change.part, change.fields) == ("changed", "no-allergy-advice", ("text",))
    assert set(change.stale) == {"system prompt", "training pairs", "judges", "approvals"}


@pytest.mark.parametrize(
    ("field", "value", "stale"),
    [
        ("role", "You bake.", "system prompt"),
        ("gates", [], "gates"),
        ("monitors", [], "monitors"),
        ("probes", {}, "measurements"),
        ("principles", [{"id": "new", "text": "Be new."}], "constitution"),
        ("high_stakes", [], "review queue"),
        ("bounds", {"leakage": 0.5}, "calibration"),
        ("owner", "bert@bakery.example", "approvals"),
    ],
)
def test_a_new_field_of_the_charter_is_named_with_what_it_feeds(
    document: Document, field: str, value: Any, stale: str
) -> None:
    (change,) = diff(Charter.model_validate(document()), Charter.model_validate(document() | {field: value}))
    assert (change.kind, change.part) == ("changed", field)
    assert stale in change.stale


def test_a_new_version_number_is_a_difference_that_makes_nothing_stale(document: Document) -> None:
    one, two = Charter.model_validate(document()), Charter.model_validate(document() | {"version": "2.0.0"})
    assert diff(one, two) == [Change("changed", "version", ("version",), ())]


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
