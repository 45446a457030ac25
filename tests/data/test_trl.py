"""TRL's formats are read as the same prompt and replies; what can't be read is told by line, and costs no other row."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.chat import assistant, user
from spiritlevel.data import Preference, read_preferences, write_preferences
from spiritlevel.data.trl import read_trl, write_trl
from spiritlevel.errors import SpiritLevelError

ASKED, GOOD, BAD = "Is it due?", "On the 10th.", "No idea."
PROMPT = [user("Hello"), assistant("Yes?"), user(ASKED)]
SAID = "\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: Is it due?\n\nAssistant:"


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": PROMPT, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
        {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD},
        {"prompt": PROMPT, "chosen": [*PROMPT, assistant(GOOD)], "rejected": [*PROMPT, assistant(BAD)]},
        {"chosen": [*PROMPT, assistant(GOOD)], "rejected": [*PROMPT, assistant(BAD)]},
        {"chosen": f"{SAID} {GOOD}", "rejected": f"{SAID} {BAD}"},
        {"prompt": SAID, "chosen": GOOD, "rejected": BAD, "completion": None},
    ],
)
def test_every_form_of_a_preference_is_the_same_row(tmp_path: Path, row: dict[str, Any]) -> None:
    [read], unreadable = read_trl(written(tmp_path / "a.jsonl", [row]))
    assert not unreadable
    assert (read.prompt, read.chosen, read.rejected) == (PROMPT, GOOD, BAD)
    assert read.raw == row


@pytest.mark.parametrize(
    ("row", "chosen", "rejected"),
    [
        ({"prompt": ASKED, "completion": GOOD}, GOOD, None),
        ({"prompt": ASKED, "completion": GOOD, "label": True}, GOOD, None),
        ({"prompt": [user(ASKED)], "completion": [assistant(BAD)], "label": False}, None, BAD),
        ({"messages": [user(ASKED), assistant(GOOD)]}, GOOD, None),
        ({"messages": [user(ASKED), assistant(BAD)], "label": False}, None, BAD),
    ],
)
def test_a_single_reply_is_to_be_learnt_or_avoided(
    tmp_path: Path, row: dict[str, Any], chosen: Any, rejected: Any
) -> None:
    [read], _ = read_trl(written(tmp_path / "a.jsonl", [row]))
    assert (read.prompt, read.chosen, read.rejected) == ([user(ASKED)], chosen, rejected)


def test_plain_texts_part_where_they_first_differ_and_the_space_is_the_replies(tmp_path: Path) -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    [read], _ = read_trl(written(tmp_path / "a.jsonl", [row]))
    assert (read.prompt, read.chosen, read.rejected) == ([user("The sky is")], " blue.", " green.")


def test_equal_conversations_still_have_a_reply_each(tmp_path: Path) -> None:
    row = {name: [user(ASKED), assistant(GOOD)] for name in ("chosen", "rejected")}
    [read], _ = read_trl(written(tmp_path / "a.jsonl", [row]))
    assert (read.chosen, read.rejected) == (GOOD, GOOD)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "q"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "not a JSON object"),
        ('{"prompt": "q"}', "has neither"),
        ('{"prompt": "q", "chosen": "a"}', "only one of"),
        ('{"completion": "a"}', "no `prompt`"),
        ('{"prompt": "q", "completion": "a", "label": "good"}', "neither true nor false"),
        ('{"chosen": "abc", "rejected": "xyz"}', "do not begin alike"),
        ('{"chosen": "abc", "rejected": 4}', "`rejected` is not"),
        ('{"prompt": "q", "chosen": 4, "rejected": "a"}', "neither text nor messages"),
        ('{"prompt": [{"role": "robot", "content": "q"}], "completion": "a"}', "role"),
        ('{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": "a"}', "content is not text"),
        ('{"messages": [{"role": "user", "content": "q"}]}', "does not end with a reply"),
        ('{"prompt": "q", "completion": "\\ud800"}', "surrogate"),
    ],
)
def test_what_cannot_be_read_is_told_by_line_and_costs_no_other_row(tmp_path: Path, line: str, reason: str) -> None:
    good = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
    path = tmp_path / "a.jsonl"
    path.write_text(f"{good}\n\n{line}\n{good}\n")
    rows, [fault] = read_trl(path)
    assert [row.number for row in rows] == [1, 4]
    assert fault.number == 3 and fault.text == line and reason in fault.reason


def test_bytes_that_are_no_text_are_one_unreadable_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "q", "completion": "a"}\n{"prompt": "\xff"}\n')
    rows, [fault] = read_trl(path)
    assert len(rows) == 1 and fault.reason == "not UTF-8" and fault.number == 2


def test_all_file_forms_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{number}", "chosen": "a", "rejected": "b", "more": [number]} for number in range(3)]
    lines = written(tmp_path / "a.jsonl", rows)
    read, _ = read_trl(lines)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    write_trl(tmp_path / "a.parquet", read)
    write_trl(tmp_path / "b.jsonl", read)
    for other in ("a.json", "a.jsonl.gz", "a.parquet", "b.jsonl"):
        again, unreadable = read_trl(tmp_path / other)
        assert not unreadable and [row.raw for row in again] == rows


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, form: str) -> None:
    rows = [{"prompt": f"q{number}", "completion": "a"} for number in range(2)]
    text = json.dumps(rows) if form == "array" else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8-sig")
    read, unreadable = read_trl(tmp_path / "a.jsonl")
    assert not unreadable and [row.raw for row in read] == rows
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert [row.raw for row in read_trl(tmp_path / "a.jsonl.gz")[0]] == rows


def test_our_own_pairs_stay_ours_in_parquet(tmp_path: Path) -> None:
    pairs = [Preference.of("q", "a", "b", provenance={"file": "a.md"}), Preference.of("q2", "a", "b")]
    write_preferences(tmp_path / "a.jsonl", pairs)
    write_trl(tmp_path / "a.parquet", read_trl(tmp_path / "a.jsonl")[0])
    write_trl(tmp_path / "b.jsonl", read_trl(tmp_path / "a.parquet")[0])
    assert read_preferences(tmp_path / "a.parquet") == read_preferences(tmp_path / "b.jsonl") == pairs


def test_a_parquet_file_has_the_columns_of_every_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        {"messages": [user(ASKED), assistant(GOOD)], "score": 3},
        {"prompt": ASKED, "completion": BAD, "label": False},
    ]
    read, _ = read_trl(written(tmp_path / "a.jsonl", rows))
    write_trl(tmp_path / "a.parquet", read)
    again, unreadable = read_trl(tmp_path / "a.parquet")
    assert not unreadable
    assert [{name: value for name, value in row.raw.items() if value is not None} for row in again] == rows


def test_a_number_that_no_column_holds_is_told(tmp_path: Path) -> None:
    read, _ = read_trl(written(tmp_path / "a.jsonl", [{"prompt": ASKED, "completion": GOOD, "id": 2**70}]))
    with pytest.raises(SpiritLevelError, match="no table"):
        write_trl(tmp_path / "a.parquet", read)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b""), ("a.jsonl.gz", b"no gzip"), ("a.json", b"[1,"), ("a.parquet", b"PAR1"), ("none.jsonl", None)],
)
def test_a_file_that_cannot_be_read_at_all_is_told(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpiritLevelError) as told:
        read_trl(tmp_path / name)
    assert str(tmp_path / name) in told.value.where


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([SAID, f"{SAID} {GOOD}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "prompt"]), inner)
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": inner})
    ),
    max_leaves=6,
)
columns = st.sampled_from(["prompt", "chosen", "rejected", "completion", "label", "messages"])


@given(st.lists(st.dictionaries(columns, values) | values, min_size=1, max_size=4))
def test_every_line_is_read_or_told_whatever_it_holds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    path = written(tmp_path_factory.mktemp("any") / "a.jsonl", [{"messages": None}, *rows])
    read, unreadable = read_trl(path)
    numbers = sorted([row.number for row in read] + [fault.number for fault in unreadable])
    assert numbers == list(range(1, len(rows) + 2))
