"""Runs of words in common: what is planted is found, what is not is kept, whichever text was there first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.data.overlap import RUN, Overlap, Unseen, UnseenText, read_suite, words_of
from spiritlevel.errors import SpiritLevelError

words = st.lists(st.sampled_from(["able", "baker", "chalk", "delta", "echo", "fox"]), max_size=18)
strange = st.text(max_size=80)


def found(unseen: str, text: str) -> bool:
    return Unseen([UnseenText(unseen, "suite")]).overlap(text) is not None


def numbered(start: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(start, start + count))


def common_run(one: str, other: str) -> bool:
    """The definition, word by word."""
    first, second = one.split(), other.split()
    length = min(RUN, len(first), len(second))
    if length < 5:
        return first == second and length >= 3
    runs = {tuple(second[start : start + length]) for start in range(len(second) - length + 1)}
    return any(tuple(first[start : start + length]) in runs for start in range(len(first) - length + 1))


@st.composite
def two_texts(draw: st.DrawFn) -> tuple[str, str]:
    """Of which the second has a part of the first in it, often all."""
    first = draw(words)
    start, end = draw(st.integers(0, 2)), draw(st.integers(0, 18))
    return " ".join(first), " ".join([*draw(words)[:3], *first[start:end], *draw(words)[:3]])


@given(two_texts())
def test_it_is_what_the_definition_says_and_the_same_both_ways(both: tuple[str, str]) -> None:
    one, other = both
    assert found(one, other) == found(other, one) == common_run(one, other)


@given(strange, strange)
def test_any_text_can_be_asked_about(one: str, other: str) -> None:
    assert found(one, other) == found(other, one)
    assert found(one, one) == (len(words_of(one)) >= 3)


@pytest.mark.parametrize(("shared", "expected"), [(12, False), (13, True), (20, True)])
def test_of_long_texts_thirteen_words_in_a_row_count(shared: int, expected: bool) -> None:
    text = f"before {numbered(10, shared)} after " + numbered(100, 20)
    assert found(numbered(10 - 20 + shared, 20) if shared < 20 else numbered(10, 20), text) is expected


@pytest.mark.parametrize(("length", "expected"), [(4, False), (5, True), (12, True)])
def test_of_short_texts_all_words_count(length: int, expected: bool) -> None:
    short, long = numbered(0, length), f"so {numbered(0, length)} and {numbered(50, 20)}"
    assert found(short, long) is found(long, short) is expected
    assert found(short, short)


@pytest.mark.parametrize(
    "same",
    [
        "Don't COMMIT the secrets, ever again!",
        "don’t commit\n the “secrets” ever again",
        "dont commit the ｓecrets ever again",
    ],
)
def test_case_punctuation_and_typography_hide_nothing(same: str) -> None:
    assert found("don't commit the secrets ever again", same)


def test_signs_without_spaces_are_words_of_their_own() -> None:
    assert found("今天可以提交密码吗", "他问：今天可以提交密码吗？我说不行。")
    assert not found("今天可以提交密码吗", "他问：明天可以提交密码吗？我说不行。")


def test_a_suite_without_spaces_is_read(tmp_path: Path) -> None:
    asked = "公司的增值税申报截止日期是哪一天？"
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "税", "q": asked}) + "\n")
    suite = read_suite(tmp_path / "a.jsonl")
    assert [text.text for text in suite] == [asked]
    assert Unseen(suite).overlap(f"请问，{asked}谢谢。") is not None


def test_the_overlap_names_the_text_and_the_run() -> None:
    unseen = UnseenText("May I see the old books?", "probes.jsonl", "7")
    assert Unseen([unseen]).overlap("So: may I see the old books") == Overlap(unseen, "may i see the old books")


ROWS = [
    {
        "id": "q-1",
        "question": "May I see the books?",
        "choices": {"text": ["Only the old", "none"]},
        "url": "http://x.y/a",
    },
    {"id": "q-2", "question": "Who keeps the key?", "choices": {"text": []}, "url": "http://x.y/b"},
]


def test_every_text_of_a_suite_is_read_in_any_format(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lines = ["id,question,choices", 'q-1,"May I see\nthe books?",Only the old', "q-2,Who keeps the key?,none"]
    (tmp_path / "a.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    expected = ["May I see the books?", "Only the old", "Who keeps the key?"]
    for name in ("a.json", "a.jsonl", "a.csv"):
        suite = read_suite(tmp_path / name)
        assert [" ".join(text.text.split()) for text in suite] == expected
        assert {text.file for text in suite} == {str(tmp_path / name)}
    assert [text.place for text in read_suite(tmp_path / "a.csv")] == ["3", "3", "4"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"May I see it?", "is read from"),
        ("a.jsonl", b'{"id": "x"}\n', "holds no text"),
        ("a.jsonl", b"{", "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
        ("a.csv", b"a,b\n\xff\xfe \n", "not valid CSV"),
        ("a.csv", None, "No such file"),
    ],
)
def test_what_is_no_suite_is_told(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpiritLevelError, match=said) as told:
        read_suite(tmp_path / name)
    assert told.value.where.startswith(str(tmp_path / name))
