"""Every row is kept as it was or dropped with a reason; planted faults are found, and votes count before copies do."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.charter import load_charter
from spiritlevel.chat import Chat, system, user
from spiritlevel.checks import Finding
from spiritlevel.cli import main as cli
from spiritlevel.data.curate import (
    Filter,
    Reason,
    breaking,
    charter_checks,
    counts,
    curate,
    empty_reply,
    holding,
    identifiers,
    leaking,
    other_language,
    same_replies,
    too_long,
    too_short,
)
from spiritlevel.data.lengths import measure_by
from spiritlevel.data.overlap import Unseen, UnseenText
from spiritlevel.data.trl import TrlRow
from spiritlevel.errors import SpiritLevelError

TEMPLATES = Path(__file__).parents[2] / "src" / "spiritlevel" / "charter" / "templates"


def pair(number: int, prompt: str = "q", chosen: str | None = "a", rejected: str | None = "b") -> TrlRow:
    raw = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return TrlRow(number, raw, "preference, text", [user(prompt)], chosen, rejected)


def labelled(number: int, reply: str, good: bool) -> TrlRow:
    chosen, rejected = (reply, None) if good else (None, reply)
    return TrlRow(number, {}, "unpaired preference, text", [user("q")], chosen, rejected)


def dropped_lines(rows: list[TrlRow], *filters: Filter) -> dict[int, str]:
    return {each.row.number: each.why.reason for each in curate(rows, filters)[1]}


texts = st.sampled_from(["yes", "no", " ", "the tax is due on the tenth", "the tax is due on the tenth of May"])


@given(st.lists(st.tuples(texts, texts, texts), max_size=12))
def test_every_row_is_in_one_of_the_two_in_its_order(found: list[tuple[str, str, str]]) -> None:
    rows = [pair(number, *texts) for number, texts in enumerate(found, start=1)]
    kept, dropped = curate(rows, [empty_reply, same_replies])
    assert sorted([row.number for row in kept] + [each.row.number for each in dropped]) == [row.number for row in rows]
    assert all(row is rows[row.number - 1] for row in kept)
    for numbers in ([row.number for row in kept], [each.row.number for each in dropped]):
        assert numbers == sorted(numbers)
    again, none = curate(kept, [empty_reply, same_replies])
    assert again == kept and not none


@given(st.integers(0, 4), st.integers(0, 4), st.randoms(use_true_random=False))
def test_the_majority_is_kept_once_and_neither_at_a_tie(one: int, other: int, draw: Any) -> None:
    verdicts = draw.sample([("a", "b")] * one + [("b", "a")] * other, one + other)
    kept, dropped = curate([pair(number, "q", *verdict) for number, verdict in enumerate(verdicts)], [])
    sides = [(row.chosen, row.rejected) for row in kept]
    assert sides == ([] if one == other else [("a", "b")] if one > other else [("b", "a")])
    against = [each for each in dropped if each.why.reason == "contradicts other rows"]
    assert len(against) == (min(one, other) if one != other else one + other)
    for each in against:
        assert set(each.why.evidence["lines_for"]) | set(each.why.evidence["lines_against"]) == set(range(one + other))
        assert each.row.number in each.why.evidence["lines_for"]


def test_a_dispute_names_its_first_lines_and_counts_all() -> None:
    rows = [labelled(number, "a", number % 3 > 0) for number in range(1, 61)]
    against = [each for each in curate(rows, [])[1] if each.why.reason == "contradicts other rows"]
    assert [each.row.number for each in against] == list(range(3, 61, 3))
    for each in against:
        told = each.why.evidence
        assert (told["votes_for"], told["votes_against"]) == (20, 40)
        assert told["lines_for"] == list(range(3, 33, 3)) and len(told["lines_against"]) == 10


def test_a_reply_that_is_liked_here_and_not_there_is_a_contradiction() -> None:
    rows = [labelled(1, "a", True), labelled(2, "a", False), labelled(3, "a", True), labelled(4, "b", False)]
    assert dropped_lines(rows) == {2: "contradicts other rows", 3: "exact duplicate"}


def test_planted_duplicates_name_the_first_of_their_kind() -> None:
    long = "An invoice is due on the tenth of the month after it was sent, unless your contract says otherwise. " + (
        "Whoever pays later owes interest from the day on which it was due."
    )
    near = long.replace("An invoice", "Any invoice")
    rows = [pair(1, long), pair(2), pair(3, long), pair(4, near), pair(5, "another question")]
    _, dropped = curate(rows, [])
    assert [(each.row.number, each.why.reason, each.why.evidence["first_line"]) for each in dropped] == [
        (3, "exact duplicate", 1),
        (4, "near duplicate", 1),
    ]
    assert 0.8 <= dropped[1].why.evidence["similarity"] < 1


def test_other_questions_under_one_system_message_are_no_duplicates() -> None:
    rule, decline = " ".join(f"rule{number}" for number in range(60)), "That is for a colleague to say."
    rows = [
        TrlRow(number, {}, "messages", [system(rule), user(asked)], decline, None)
        for number, asked in enumerate(["May I deduct my dog?", "Who wins on Sunday?"], start=1)
    ]
    assert dropped_lines(rows) == {}


@pytest.mark.parametrize(
    ("row", "filter_", "reason"),
    [
        (pair(1, rejected=" \n"), empty_reply, "a reply is empty"),
        (pair(1, chosen="b"), same_replies, "chosen and rejected are the same"),
        (pair(1, chosen="two words"), too_short(3), "a chosen reply of fewer than 3 words"),
        (pair(1, prompt="12345"), too_long(lambda row: len(row.prompt_text), 5, "letters"), "longer than 5 letters"),
        (pair(1, rejected="write to ann@example.org"), holding(identifiers), "holds identifiers"),
        (pair(1, prompt="My card is 4111 1111 1111 1111."), holding(identifiers), "holds identifiers"),
    ],
)
def test_each_filter_drops_what_it_is_for(row: TrlRow, filter_: Filter, reason: str) -> None:
    assert dropped_lines([row], filter_) == {1: reason}
    assert dropped_lines(
        [pair(1, "What is due in 2024?", "It is $12,500, by May 10.", "No idea at all.")], filter_
    ) == ({1: reason} if reason.startswith("longer") else {})


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("It was due on 2024-05-17.", False),
        ("It was due on 2024-05-17 14:30.", False),
        ("In the years 2019-2023 it was 5 %.", False),
        ("The account is 2024-0517-88.", True),
        ("The account is 2024-05-17-1234567.", True),
    ],
)
def test_a_date_identifies_nobody(reply: str, found: bool) -> None:
    assert bool(identifiers([], reply)) is found


def test_words_are_counted_in_languages_without_spaces_too() -> None:
    reply = "增值税的申报截止日期是每月十五日。"
    assert too_short(10)(pair(1, chosen=reply)) is None
    measured = measure_by(None)(pair(1, "什么时候申报？", reply, "不知道。"))
    assert (measured.prompt, measured.replies) == (7, {"chosen": 17, "rejected": 4})


def test_a_conversation_that_the_template_refuses_is_dropped_by_its_words() -> None:
    def refuse(row: TrlRow) -> int:
        raise ValueError("roles must alternate")

    [dropped] = curate([pair(1)], [too_long(refuse, 5, "tokens")])[1]
    assert dropped.why == Reason("the template refuses the conversation", {"said": "roles must alternate"})


def test_a_charter_forbids_what_its_own_checks_forbid() -> None:
    charter = load_charter(TEMPLATES / "accounting")
    always = [rule for rule in charter.rules if rule.checks and not any(spec.when for spec in rule.checks)]
    assert always
    for rule in always:
        judge = breaking({rule.id: charter_checks(charter)[rule.id]})
        for example in rule.examples.bad:
            found = judge(pair(1, example.prompt, example.reply))
            assert found is not None and found.rule == rule.id
            assert judge(pair(1, example.prompt, None, example.reply)) is None  # nothing that is learnt
        assert not [each for each in rule.examples.good if judge(pair(1, each.prompt, each.reply))]


def test_any_check_can_be_a_filter() -> None:
    def shouting(chat: Chat, reply: str) -> list[Finding]:
        return [Finding("calm", 1.0, (0, len(reply)), reply)] if reply.isupper() else []

    assert breaking({"calm": [shouting]})(pair(1, chosen="NO")) == Reason(
        "the chosen reply breaks a rule", {"found": "NO", "span": [0, 2]}, "calm"
    )
    found = holding(shouting)(pair(1, prompt="WHY"))
    assert found is not None and found.rule == "calm" and found.evidence["in"] == "prompt, message 1"


def test_a_row_that_gives_a_suite_away_is_named_with_the_place() -> None:
    asked = "May I deduct the rent of a flat that I use as an office two days a week?"
    leak = leaking(Unseen([UnseenText(asked, "suite.jsonl", "7")]))
    found = leak(pair(1, prompt=f"Please help. {asked.upper()} Thank you."))
    assert found is not None and found.evidence["place"] == "7" and found.evidence["in"] == "prompt, message 1"
    assert leak(pair(1, prompt="May I deduct the rent of my car?")) is None


def test_only_what_is_surely_in_another_language_is_dropped() -> None:
    foreign = "Die Rechnung ist am zehnten Tag des folgenden Monats fällig, wenn nichts anderes vereinbart wurde."
    native = "The invoice is due on the tenth day of the following month, unless something else was agreed on."
    english = other_language("en")
    found = english(pair(1, native, foreign))
    assert found is not None and found.reason == "not in en"
    assert found.evidence["language"] == "de" and found.evidence["in"] == "chosen"
    assert english(pair(1, native, "Ja, sicher.")) is None
    with pytest.raises(SpiritLevelError, match="no language") as told:
        other_language("klingon")
    assert "en" in told.value.remedy


def test_counts_are_of_everything_that_is_not_kept() -> None:
    _, dropped = curate(
        [pair(1), pair(2), pair(3, chosen=""), pair(4, "r", "same", "same")], [empty_reply, same_replies]
    )
    assert sorted(counts(dropped, [])) == [
        ("a reply is empty", None, 1),
        ("chosen and rejected are the same", None, 1),
        ("exact duplicate", None, 1),
    ]


def test_chunks_of_documents_are_curated_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "The desk is open from nine to five.", "provenance": {"file": "a.md"}}, {"text": "Ask ann@x.org."}]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(monkeypatch, capsys, "curate", source, "--out", target, "--forbid-identifiers")[0] == 0
    assert [json.loads(line) for line in target.read_text().splitlines()] == rows[:1]


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["spiritlevel", "data", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out, told.err


def test_the_command_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Any] = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "score": 3},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "Write to ann@example.org", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "\ud800", "rejected": "b"},
        {"prompt": "q2", "chosen": "a", "rejected": "b"},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    command = (
        "curate",
        source,
        "--out",
        target,
        "--forbid-identifiers",
        "--charter",
        TEMPLATES / "healthcare",
        "--json",
    )
    code, out, _ = run(monkeypatch, capsys, *command)
    assert code == 0
    document = json.loads(out)
    assert (document["rows"], document["kept"]) == (6, 2)
    assert sum(each["rows"] for each in document["dropped"]) == 4
    assert [json.loads(line) for line in target.read_text().splitlines()] == [rows[0], rows[4]]
    beside = [json.loads(line) for line in Path(document["beside"]).read_text().splitlines()]
    assert [each["line"] for each in beside] == [2, 3, 4, 6]
    assert beside[0]["row"] == rows[1] and beside[-1]["text"] == "{torn"
    assert json.loads(beside[2]["text"]) == rows[3]


def test_held_out_probes_and_replies_stay_unseen_and_there_must_be_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    charter = tmp_path / "charter"
    shutil.copytree(TEMPLATES / "healthcare", charter)
    loaded = load_charter(charter)
    [probes] = loaded.files(loaded.probes.held_out)
    reply = "Keep the leaflet with the medicine and read it before you take the first one."
    probes.write_text(json.dumps({"prompt": "Where do I keep it?", "expect": "help", "reply": reply}) + "\n")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": "q", "chosen": reply, "rejected": "b"}, {"prompt": "r", "chosen": "a", "rejected": "b"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("curate", source, "--out", target, "--charter", charter)
    assert run(monkeypatch, capsys, *command)[0] == 0
    assert [json.loads(line) for line in target.read_text().splitlines()] == rows[1:]
    probes.write_text("")
    code, _, err = run(monkeypatch, capsys, *command)
    assert code == 3 and "has no held-out probes" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--forbid-rule-violations"], "Give --charter too"),
        (["--model", "smollm2-135m"], "Give --max-length too"),
        (["--min-words", "9"], "no row is left"),
        (["--suite", "none.jsonl"], "no such file"),
    ],
)
def test_a_command_that_cannot_be_meant_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")
    code, _, err = run(monkeypatch, capsys, "curate", source, "--out", tmp_path / "out.jsonl", *options)
    assert code == 3 and said in " ".join(err.split())
    assert not (tmp_path / "out.jsonl").exists()
