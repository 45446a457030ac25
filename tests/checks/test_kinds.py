"""Checks find what they are for, at the right place, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spiritlevel.charter import Charter, load_charter
from spiritlevel.chat import Chat, assistant, system, user
from spiritlevel.checks import Check, judge_probe, rule_checks, run_checks, stance

Build = Callable[..., Check]
TEMPLATES = sorted((Path(str(files("spiritlevel.charter"))) / "templates").iterdir())
CHARTERS: list[Charter] = [load_charter(folder) for folder in TEMPLATES]

texts = st.text(max_size=60)
# Words of which the packaged checks make something, among anything else.
wordy = st.lists(
    st.sampled_from(
        [
            "I can't help",
            "please",
            "ask",
            "our lawyer",
            "4111-1111",
            "$12,500",
            "a@b.example",
            ". ",
            "\n",
            "’",
        ]
    )
    | texts,
    max_size=12,
).map(" ".join)
chats = st.lists(
    st.builds(lambda role, text: role(text), st.sampled_from([user, assistant, system]), wordy), max_size=4
)


@given(texts, texts, st.sampled_from(["Rye", "RYE", "rye"]))
def test_forbid_finds_the_words_where_they_stand(check: Build, before: str, after: str, word: str) -> None:
    reply = before + word + after
    (finding,) = check("forbid", patterns=["spelt", "rye"])([], reply)
    assert finding.rule_id == "rule"
    assert reply[slice(*finding.span)] == finding.evidence
    assert finding.evidence.lower() == "rye"
    assert finding.span[0] <= len(before)


@given(st.lists(st.sampled_from(["a+", "b", r"\bc", "(d|e)f"]), min_size=1), st.text("abcdef "))
def test_what_forbid_finds_require_misses(check: Build, patterns: list[str], reply: str) -> None:
    forbidden = check("forbid", patterns=patterns)([], reply)
    missing = check("require", patterns=patterns)([], reply)
    assert len(forbidden) + len(missing) == 1
    for finding in forbidden:
        assert finding.span[0] == re.search("|".join(patterns), reply, re.IGNORECASE).start()  # type: ignore[union-attr]
    for finding in missing:
        assert finding.span == (0, 0)


@pytest.mark.parametrize(
    ("patterns", "reply", "found"),
    [
        (["(?i)rye", "(?x) spelt  # a grain"], "SPELT", True),
        (["(?P<a>x)y", "(?P<a>y)z"], "yz", True),
        (["(a)b", r"(c)d\1"], "cdc", True),
        (["(a)b", r"(c)d\1"], "cda", False),
        (["a|b", "^c"], "xc", False),
    ],
)
def test_each_pattern_keeps_its_own_flags_names_and_groups(
    check: Build, patterns: list[str], reply: str, found: bool
) -> None:
    assert bool(check("forbid", patterns=patterns)([], reply)) == found


@given(wordy)
def test_decline_is_about_the_stance(check: Build, reply: str) -> None:
    findings = check("decline")([], reply)
    assert bool(findings) != stance(reply).declines
    assert [finding.span for finding in findings] == [(0, len(reply))] * len(findings)


BROKEN: list[tuple[str, dict[str, list[str]], str]] = [
    ("forbid", {"patterns": ["bread"]}, "bread of 4111 1111"),
    ("require", {"patterns": ["cake"]}, "bread of 4111 1111"),
    ("decline", {}, "bread of 4111 1111"),
    ("echo", {}, "bread of 4111 1111"),
]
asked: Chat = [user("Flour?"), assistant("Which?"), user("My card is 4111 1111")]


@pytest.mark.parametrize(("kind", "fields", "reply"), BROKEN)
def test_when_asks_the_last_question_and_a_known_topic_need_not(
    check: Build, kind: str, fields: dict[str, list[str]], reply: str
) -> None:
    on, off = {**fields, "when": ["tea", "CARD"]}, {**fields, "when": ["flour"]}
    assert check(kind, **fields)(asked, reply)
    assert check(kind, **on)(asked, reply) == check(kind, **fields)(asked, reply)
    assert check(kind, **off)(asked, reply) == []
    assert check(kind, **off, assume_topic=True)(asked, reply) == check(kind, **fields)(asked, reply)
    assert check(kind, **on)([], reply) == []


@pytest.mark.parametrize(("kind", "fields", "reply"), BROKEN)
@pytest.mark.parametrize("assume_topic", [False, True])
def test_unless_excuses_the_reply_that_says_it(
    check: Build, kind: str, fields: dict[str, list[str]], reply: str, assume_topic: bool
) -> None:
    excused = check(kind, **fields, unless=["yeast", "sorry"], assume_topic=assume_topic)
    assert excused(asked, reply)
    assert excused(asked, f"{reply} SORRY") == []


separators = st.sampled_from(["", " ", "-"])


@st.composite
def written_twice(draw: st.DrawFn) -> tuple[str, str, str]:
    """The digits of an identifier, and two ways to write them."""
    groups = draw(st.lists(st.text("0123456789", min_size=2, max_size=4), min_size=2, max_size=5))
    assume(groups[0][:2] not in ("19", "20"))  # may be a year
    one, two = (groups[0] + "".join(draw(separators) + group for group in groups[1:]) for _ in range(2))
    return "".join(groups), one, two


@given(
    written_twice(),
    st.sampled_from(["", ", please", ". Thanks", "!", ")", "?\n"]),
    st.sampled_from(["", "No. ", "("]),
)
def test_echo_knows_an_identifier_however_it_is_written(
    check: Build, written: tuple[str, str, str], after: str, before: str
) -> None:
    digits, one, two = written
    reply = f"Noted, {before}{two}{after}"
    (finding,) = check("echo")([user(f"It is {one}{after}")], reply)
    assert re.sub("[ -]", "", reply[slice(*finding.span)]) == digits


@pytest.mark.parametrize(
    ("told", "reply", "repeated"),
    [
        (
            "Mail Anna.Berg+tax@bakery.example now",
            "To anna.berg+TAX@bakery.example?",
            "anna.berg+TAX@bakery.example",
        ),
        ("IBAN DE00 4455 6677 8899 0011 00", "Pay de00445566778899001100, soon", "de00445566778899001100"),
        ("My number is 555-0142, please", "So 555 0142, then.", "555 0142"),
        ("Order 48213.", "(48213)", "48213"),
        ("Card 4111 1111 1111 1111 12/27", "Card 4111-1111-1111-1111?", "4111-1111-1111-1111"),
        ("Call (555) 123-4567", "555-123-4567, right?", "555-123-4567"),
        ("Card 2012 3456 7890", "201234567890, thanks", "201234567890"),
    ],
)
def test_echo_finds_addresses_accounts_and_numbers(check: Build, told: str, reply: str, repeated: str) -> None:
    found = {reply[slice(*finding.span)] for finding in check("echo")([user(told)], reply)}
    assert repeated in found


def test_echo_lets_the_last_digits_pass(check: Build) -> None:
    assert check("echo")([user("Card 4111 1111 1111 1234")], "The card that ends in 1234?") == []


@pytest.mark.parametrize(
    "plain", ["$12,500", "€4500", "12,500.00", "1234.50", "2024", "in 1999, then", "123", "3 of 4"]
)
def test_echo_lets_amounts_and_years_pass(check: Build, plain: str) -> None:
    assert check("echo")([user(f"It was {plain}")], f"So {plain} it is") == []


@given(st.integers(0, 999_999_999))
def test_echo_lets_any_amount_of_money_pass(check: Build, cents: int) -> None:
    for amount in (f"${cents // 100:,}", f"${cents / 100:,.2f}", f"£{cents // 100}"):
        assert check("echo")([user(f"The bill says {amount}, due soon.")], f"Book {amount} as a cost.") == []


def test_echo_is_about_what_people_gave_and_the_reply_repeats(check: Build) -> None:
    reply = "Call 5550 0142."
    assert check("echo")([system("Our number: 5550 0142")], reply) == []
    assert check("echo")([user("Your number?")], reply) == []
    assert check("echo")([user("I am 5550 0142"), assistant("Hello"), user("Well?")], reply)


@given(st.text("ab", min_size=1, max_size=6), st.text("ab XY", max_size=30))
def test_echo_with_its_own_patterns(check: Build, secret: str, around: str) -> None:
    echo = check("echo", patterns=[r"key-\w+"])
    assert echo([user(f"{around} key-{secret}.")], f"{around} KEY-{secret.upper()}!")
    assert echo([user(f"{around} key-{secret}.")], f"{around} key-{secret}z!") == []


@given(chats, wordy, st.sampled_from(CHARTERS), st.booleans())
def test_checks_never_raise_and_always_say_the_same(
    chat: Chat, reply: str, charter: Charter, assume_topic: bool
) -> None:
    checks = [check for rule in charter.rules for check in rule_checks(rule, assume_topic=assume_topic)]
    findings = run_checks(checks, chat, reply)
    assert findings == run_checks(checks, chat, reply)
    for finding in findings:
        start, end = finding.span
        assert 0 <= start <= end <= len(reply)
        assert 0 <= finding.score <= 1
        assert finding.evidence


@given(chats, wordy, st.sampled_from(CHARTERS), st.data())
def test_judging_never_raises_and_names_the_rule(chat: Chat, reply: str, charter: Charter, data: Any) -> None:
    rule = data.draw(st.sampled_from(charter.rules)).id
    expect = data.draw(st.sampled_from(["refuse", "refer", "redact"]))
    findings = judge_probe(charter, rule, expect, chat, reply)
    assert {finding.rule_id for finding in findings} <= {rule}
    assert all(0 <= finding.span[0] <= finding.span[1] <= len(reply) for finding in findings)
    if expect == "refer" and not findings:
        assert judge_probe(charter, rule, "refuse", chat, reply) == []
    assert judge_probe(charter, None, "help", chat, reply) == judge_probe(charter, rule, "help", chat, reply)


@pytest.mark.parametrize("side", ["input", "action"])
def test_a_rule_that_is_not_about_replies_judges_none(side: str) -> None:
    rule = CHARTERS[0].rules[0].model_copy(update={"applies_to": (side,)})
    assert rule_checks(rule) == []
    assert len(rule_checks(CHARTERS[0].rules[0])) == len(rule.checks)


ENDLESS = ["a" * 100_000, "1" * 100_000, "1-" * 50_000, "A1 " * 30_000, "." * 100_000]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ENDLESS, ids=lambda text: text[:3])
def test_echo_is_quick_on_text_without_end(check: Build, text: str) -> None:
    check("echo")([user(text)], text)
