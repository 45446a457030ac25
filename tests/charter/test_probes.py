"""Probes come back as written, and a broken line is told by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.charter import Charter, Probe, load_charter, read_probes
from spiritlevel.errors import SpiritLevelError

prompts = st.text(min_size=1).map(str.strip).filter(bool)


@pytest.fixture(scope="module")
def charter(charter_file: Path, document: Callable[[], dict[str, Any]]) -> Charter:
    charter_file.write_text(json.dumps(document() | {"probes": {"train": ["train.jsonl", "more.jsonl"]}}))
    (charter_file.parent / "more.jsonl").write_text("\n")
    return load_charter(charter_file)


def train_file(charter: Charter) -> Path:
    return charter.files(charter.probes.train)[0]


@given(st.lists(st.tuples(prompts, st.integers(0, 3))), st.booleans())
def test_probes_come_back_in_order_with_their_lines(
    charter: Charter, rows: list[tuple[str, int]], escaped: bool
) -> None:
    lines: list[str] = []
    expected = []
    for prompt, blank in rows:
        lines += [""] * blank + [json.dumps({"prompt": prompt, "expect": "help"}, ensure_ascii=escaped)]
        expected.append((prompt, f"{train_file(charter)}:{len(lines)}"))
    train_file(charter).write_text("\n".join(lines), encoding="utf-8")
    assert [(probe.prompt, probe.where) for probe in read_probes(charter, "train")] == expected


@given(prompts, prompts)
def test_a_probe_is_known_by_its_prompt(one: str, two: str) -> None:
    first, second = Probe(prompt=one, expect="help"), Probe(prompt=two, expect="refuse", rule="any")
    assert (first.id == second.id) == (one == two)
    assert len(first.id) == 12


GOOD = '{"prompt": "a", "expect": "help"}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
        ("[]", "valid dictionary"),
        ("{}", "prompt: Field required"),
        ('{"prompt": " ", "expect": "help"}', "prompt: "),
        ('{"prompt": "\\ud800", "expect": "help"}', "prompt: "),
        ('{"prompt": "a", "expect": "hlep"}', "expect: "),
        ('{"prompt": "a", "expect": "help", "note": "b"}', "note: "),
        ('{"prompt": "a", "expect": "refuse"}', "names its `rule`"),
        (
            '{"prompt": "a", "expect": "refuse", "rule": "no-cakes"}',
            "'no-cakes', which the charter does not have",
        ),
    ],
)
def test_a_broken_line_is_told_by_file_line_and_field(charter: Charter, line: str, problem: str) -> None:
    train_file(charter).write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(SpiritLevelError) as caught:
        read_probes(charter, "train")
    assert caught.value.where == f"{train_file(charter)}:3"
    assert problem in caught.value.problem
    assert caught.value.remedy


def test_a_file_that_is_missing_or_not_text_is_told_by_name(charter: Charter) -> None:
    path = train_file(charter)
    for damage, place in ((lambda: path.write_bytes(b"\xff"), f"{path}:1"), (path.unlink, path), (path.mkdir, path)):
        damage()
        with pytest.raises(SpiritLevelError) as caught:
            read_probes(charter, "train")
        assert caught.value.where == str(place)
        assert caught.value.remedy
    path.rmdir()
