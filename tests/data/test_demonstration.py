"""Demonstration files: what is written is read, TRL's forms are read, and faults are named by line and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spiritlevel.data import (
    Demonstration,
    Preference,
    read_demonstrations,
    read_records,
    write_demonstrations,
    write_preferences,
)
from spiritlevel.data.trl import read_trl
from spiritlevel.errors import SpiritLevelError

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "more?"}]
REPLY = {"role": "assistant", "content": "more ü"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    records = [
        Demonstration.of("q", "a", rule="r", source="document", author="x", provenance={"file": "a.md", "line": 3}),
        Demonstration.of(CHAT, "more ü 中", finished=False),  # type: ignore[arg-type]
    ]
    path = tmp_path / f"shown{suffix}"
    write_demonstrations(path, records)
    assert read_demonstrations(path) == read_records(path) == records


def test_strings_messages_and_conversations_are_the_same_record() -> None:
    record = Demonstration.of(CHAT, "more ü")  # type: ignore[arg-type]
    assert Demonstration.model_validate({"messages": [*CHAT, REPLY]}) == record
    assert Demonstration.model_validate({"prompt": CHAT, "completion": [REPLY], "messages": None}) == record
    assert record.taught == ("more ü", True)
    assert record.chat == CHAT


def test_rows_have_trl_columns_first(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    write_demonstrations(path, [Demonstration.of("q", "a")])
    row = json.loads(path.read_text())
    assert list(row)[:2] == ["prompt", "completion"]
    assert row["completion"] == [{"role": "assistant", "content": "a"}]


def test_a_file_tells_its_kind_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    pair = Preference.of("q", "good", "bad")
    write_preferences(path, [pair])
    assert read_records(path) == [pair]
    path.write_text(json.dumps({"messages": [*CHAT, REPLY]}) + "\n")
    assert read_records(path) == [Demonstration.of(CHAT, "more ü")]  # type: ignore[arg-type]


def test_a_comparison_beside_a_conversation_is_a_preference_to_both_readers(tmp_path: Path) -> None:
    """As UltraFeedback-binarized has it."""
    asked = {"role": "user", "content": "q"}
    whole = {"chosen": [asked, {"role": "assistant", "content": "good"}], "rejected": [asked, REPLY]}
    row = {"prompt": "q", **whole, "messages": whole["chosen"], "label": 3}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert read_records(path) == [Preference.of("q", "good", "more ü")]
    [read], _ = read_trl(path)
    assert (read.chosen, read.rejected) == ("good", "more ü")


def test_what_is_null_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a", "source": None, "finished": None}) + "\n")
    assert read_demonstrations(path) == [Demonstration.of("q", "a")]


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path: Path) -> None:
    path = tmp_path / "shown.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n", encoding="utf-8-sig")
    assert read_demonstrations(path) == [Demonstration.of("q", "a")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q"}, "completion"),
        ({"prompt": "q", "completion": " "}, "completion: is empty"),
        ({"prompt": [], "completion": "a"}, "prompt: is empty"),
        ({"messages": [REPLY]}, "prompt: is empty"),
        ({"messages": CHAT}, "one assistant message"),
        ({"messages": "q"}, "list of messages"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "completion"),
        (["q", "a"], ""),
    ],
)
def test_a_faulty_record_is_named_by_line_and_field(tmp_path: Path, row: object, said: str) -> None:
    path = tmp_path / "shown.jsonl"
    path.write_text(f"{json.dumps({'prompt': 'q', 'completion': 'a'})}\n\n{json.dumps(row)}\n")
    for read in (read_demonstrations, read_records):
        with pytest.raises(SpiritLevelError) as told:
            read(path)
        assert told.value.where == f"{path}:3"
        assert said in told.value.problem
        assert "`completion`" in told.value.remedy
