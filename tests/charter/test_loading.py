"""Every fault of a charter is told at once, each with its file, line and field, and with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spiritlevel.charter import load_charter
from spiritlevel.errors import SpiritLevelError


class Edit(NamedTuple):
    """A slip: `old` becomes `new`; the report then names `field` on the line of `at` and says `problem`."""

    old: str
    new: str
    at: str
    field: str
    problem: str


# Slips within one part of the charter: independent, so any set of them can be made together.
SLIPS = [
    Edit("severity: high", "severity: high\n    onwer: x", "onwer", "rules[0].onwer", "did you mean `owner`?"),
    Edit(
        "  voice: Warm",
        "  colour: red\n  voice: Warm",
        "colour",
        "tone.colour",
        "known here: voice, do, dont",
    ),
    Edit("    owner: health@bakery.example\n", "", "- id: no-allergy", "rules[1].owner", "required and missing"),
    Edit(
        "severity: critical",
        "severity: grave",
        "grave",
        "rules[1].severity",
        "'low', 'medium', 'high' or 'critical'",
    ),
    Edit("rye starter]", "(rye]", "(rye", "rules[0].checks[0].patterns[1]", "not a valid regular expression"),
    Edit(
        "[recipe]",
        "['a{99999999999}']",
        "a{999",
        "rules[0].checks[0].when[0]",
        "not a valid regular expression",
    ),
    Edit("[allerg]", "['[']", "['[']", "high_stakes[0].patterns[0]", "not a valid regular expression"),
    Edit(
        "max: 0.1",
        "max: 0.1\n    max_increase: 0.1",
        "- measure: rule",
        "gates[0]",
        "exactly one of `max` and",
    ),
    Edit("version: 1.0.0", "version: 1.0", "version:", "version", "found 1.0"),
    Edit("id: kind", "id: Be Kind", "Be Kind", "principles[0].id", "found 'Be Kind'"),
    Edit("in: [Bread]", "in: []", "in: []", "scope.in", "at least 1 item"),
    Edit(
        "leakage: 0.1",
        "leakage: 15",
        "leakage: 15",
        "bounds.leakage",
        "less than or equal to 1, found 15: 0.15 means 15 %",
    ),
    Edit("over_refusal: 0.2", "over_refusal: 20", "over_refusal: 20", "bounds.over_refusal", "0.15 means 15 %"),
    Edit(
        "confidence: 0.8",
        "confidence: 80",
        "confidence: 80",
        "bounds.confidence",
        "less than 1, found 80: 0.15 means 15 %",
    ),
    Edit("max: 0.4", "max: 15", "max: 15", "gates[1].max", "less than or equal to 1, found 15: 0.15 means 15 %"),
    Edit("max_increase: 0.2", "max_increase: 25", "max_increase: 25", "gates[2].max_increase", "0.15 means 15 %"),
    Edit("[held_out.jsonl]", '["held\\0out.jsonl"]', "held\\0out", "probes.held_out[0]", "cannot hold a NUL character"),
    Edit("- kind: decline", "- kind: forbid", "- kind: forbid", "rules[1].checks[0]", "needs `patterns`"),
]
# Slips between parts, told once every part is sound by itself.
DISAGREEMENTS = [
    Edit(
        "- id: no-allergy-advice",
        "- id: no-recipes",
        "- id: no-recipes\n    title: No ad",
        "rules[1].id",
        "duplicate",
    ),
    Edit(
        "rule: no-recipes\n    max",
        "rule: no-cakes\n    max",
        "rule: no-cakes\n    max",
        "gates[0].rule",
        "no rule",
    ),
    Edit(
        "rule: no-recipes\n    own",
        "rule: no-pies\n    own",
        "rule: no-pies",
        "monitors[0].rule",
        "no rule 'no-pies'",
    ),
    Edit(
        "    text: Choose",
        "    text: x\n  - id: kind\n    text: Choose",
        "id: kind\n    text: Ch",
        "principles[1].id",
        "dup",
    ),
]


def make(text: str, edits: list[Edit]) -> str:
    for edit in edits:
        assert text.count(edit.old) == 1, edit
        text = text.replace(edit.old, edit.new)
    return text


def refusal(path: Path, content: str | bytes) -> SpiritLevelError:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpiritLevelError) as caught:
        load_charter(path)
    return caught.value


def line_of(text: str, marker: str) -> int:
    return text[: text.rindex(marker)].count("\n") + 1


def assert_all_told(path: Path, text: str, edits: list[Edit]) -> None:
    text = make(text, edits)
    told = refusal(path, text)
    lines = told.problem.splitlines()
    assert len(lines) == len(edits)
    for edit in edits:
        place = f"{path}:{line_of(text, edit.at)}: {edit.field}: "
        assert [edit.problem in line for line in lines if line.startswith(place)] == [True]
    assert told.remedy


@settings(max_examples=40)
@given(st.lists(st.sampled_from(SLIPS), min_size=1, unique=True))
@example(SLIPS)
def test_all_slips_are_told_at_once_each_at_its_place(charter_file: Path, bakery: str, edits: list[Edit]) -> None:
    assert_all_told(charter_file, bakery, edits)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(DISAGREEMENTS), min_size=1, unique=True))
def test_parts_that_disagree_are_told_at_once(charter_file: Path, bakery: str, edits: list[Edit]) -> None:
    assert_all_told(charter_file, bakery, edits)


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("name: a\nrole: b\nname: c\n", 3, "name is given twice"),
        ("tone:\n  voice: a\n  voice: b\n", 3, "tone.voice is given twice"),
        ("name: a\nrole: [b\n", 3, "not valid YAML"),
        ("name: a\n  role: b\n", 2, "not valid YAML"),
        ("name: a\nrole: \x07\n", 2, "not valid YAML"),
        ("name: a\nrole: !!python/name:os.system ''\n", 2, "not valid YAML"),
        ("name: a\nrole: !custom b\n", 2, "not valid YAML"),
        ("a: &a {b: c}\nd:\n  <<: *a\n", 3, "not valid YAML"),
        ("name: a\n---\nname: b\n", 2, "not valid YAML"),
        ("just words", 1, "found 'just words'"),
        ("- a list", 1, "valid dictionary"),
    ],
)
def test_a_broken_file_is_told_with_its_line(charter_file: Path, content: str, line: int, problem: str) -> None:
    told = refusal(charter_file, content)
    assert str(told).startswith(f"{charter_file}:{line}: ")
    assert problem in str(told)
    assert told.remedy


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        (b"name: \xff\xfe", "cannot be read"),
        ("&a [*a]", "nested too deeply"),
        ("[" * 2000, "nested too deeply"),
    ],
)
def test_a_file_without_a_document_is_told_with_a_remedy(
    charter_file: Path, content: str | bytes, problem: str
) -> None:
    told = refusal(charter_file, content)
    assert told.where == str(charter_file)
    assert problem in told.problem
    assert told.remedy


@pytest.mark.parametrize("name", ["", "charter.yaml", "no/such/folder", "x" * 300])
def test_a_missing_charter_is_told_with_a_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpiritLevelError) as caught:
        load_charter(tmp_path / name)
    assert caught.value.where.startswith(str(tmp_path))
    assert caught.value.remedy


def test_a_folder_stands_for_its_charter(charter_file: Path, bakery: str) -> None:
    charter_file.write_text(bakery)
    assert load_charter(charter_file.parent).digest == load_charter(str(charter_file)).digest


@given(st.text() | st.text(alphabet="ab:-[]{}&*!|>'\"#,? \n\t0"))
def test_any_text_is_a_charter_or_a_clear_refusal(charter_file: Path, text: str) -> None:
    told = refusal(charter_file, text)
    assert str(charter_file) in str(told)
    assert told.remedy


@settings(max_examples=40)
@given(st.data())
def test_a_damaged_charter_loads_or_is_a_clear_refusal(charter_file: Path, bakery: str, data: st.DataObject) -> None:
    lines = bakery.splitlines(keepends=True)
    first = data.draw(st.integers(0, len(lines) - 1), "from")
    kept = lines[:first] + data.draw(
        st.sampled_from([[], ["\n"], [lines[first]] * 2, ["  " + lines[first]]]), "instead"
    )
    charter_file.write_text("".join(kept + lines[first + 1 :]))
    try:
        charter = load_charter(charter_file)
    except SpiritLevelError as told:
        assert all(line.startswith(f"{charter_file}:") for line in str(told).splitlines()[:-1])
        assert told.remedy
    else:
        assert charter.name == yaml.safe_load(bakery)["name"]
