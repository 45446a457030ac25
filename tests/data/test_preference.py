"""Preference files: what is written is read, TRL's forms are read, and faults are named by line and field."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.data import Preference, check_writable, read_preferences, write_preferences
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
        ({"prompt": 5, "chosen": [{"role": "assistant", "content": "b"}], "rejected": "a"}, "prompt"),
        ({"prompt": "q", "chosen": [{"role": "user", "content": "q"}], "rejected": "a"}, "one assistant message"),
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


def test_without_pyarrow_only_parquet_is_refused_and_can_be_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "pairs.parquet"
    for attempt in (check_writable, read_preferences, lambda path: write_preferences(path, [])):
        with pytest.raises(SpiritLevelError, match="needs pyarrow") as told:
            attempt(path)
        assert "pip install" in told.value.remedy
    check_writable(tmp_path / "pairs.jsonl")


def test_what_can_be_written_passes(tmp_path: Path):
    check_writable(tmp_path / "pairs.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no Parquet", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_told(tmp_path: Path, content: bytes):
    path = tmp_path / "pairs.parquet"
    path.write_bytes(content)
    with pytest.raises(SpiritLevelError, match="not a readable Parquet file") as told:
        read_preferences(path)
    assert told.value.where == str(path)


@pytest.mark.parametrize("provenance", ["a forum", '"a forum"', "[1]", "9" * 5000, "[" * 100_000])
def test_a_foreign_provenance_is_named_by_row_and_field(tmp_path: Path, provenance: str):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "pairs.parquet"
    good = {"prompt": "q", "chosen": "a", "rejected": "b", "provenance": "{}"}
    parquet.write_table(pyarrow.Table.from_pylist([good, good | {"provenance": provenance}]), path)
    with pytest.raises(SpiritLevelError, match="provenance: ") as told:
        read_preferences(path)
    assert told.value.where == f"{path}:2"
    assert "may be left out" in told.value.remedy
