"""Preference files: what is written is read, TRL's forms are read, and faults are named by line and field."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.data import Preference, read_preferences, write_preferences
from spiritlevel.errors import SpiritLevelError

words = st.text(min_size=1).filter(lambda text: text.strip() and text.isprintable())


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_round_trip(tmp_path: Path, suffix: str):
    records = [
        Preference.of("q", "good", "bad", rule="r", source="charter", author="a", why="w", provenance={"p": [1, "x"]}),
        Preference.of("q2", "good ü", "bad 中", chosen_finished=False),
    ]
    path = tmp_path / f"pairs{suffix}"
    write_preferences(path, records)
    assert read_preferences(path) == records


@given(prompt=words, chosen=words, rejected=words)
def test_strings_and_messages_are_the_same_record(prompt, chosen, rejected):
    if chosen == rejected:
        return
    as_messages = {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    assert Preference.model_validate(as_messages) == Preference.of(prompt, chosen, rejected)


def test_rows_have_trl_columns_in_conversational_form(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    write_preferences(path, [Preference.of("q", "good", "bad")])
    row = json.loads(path.read_text())
    assert row["prompt"] == [{"role": "user", "content": "q"}]
    assert row["chosen"] == [{"role": "assistant", "content": "good"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "chosen": "a"}, "rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "same text"),
        ({"prompt": "q", "chosen": " ", "rejected": "a"}, "empty"),
        ({"prompt": [], "chosen": "b", "rejected": "a"}, "empty"),
        ({"prompt": [{"role": "robot", "content": "q"}], "chosen": "b", "rejected": "a"}, "role"),
    ],
)
def test_a_faulty_record_is_named_by_line_and_field(tmp_path: Path, row, said):
    path = tmp_path / "pairs.jsonl"
    good = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
    path.write_text(f"{good}\n\n{json.dumps(row)}\n")
    with pytest.raises(SpiritLevelError) as told:
        read_preferences(path)
    assert told.value.where == f"{path}:3"
    assert said in told.value.problem
    assert told.value.remedy
