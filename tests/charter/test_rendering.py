"""What a model is told contains the whole charter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.charter import (
    Charter,
    Exchange,
    charter_messages,
    constitution,
    few_shot_messages,
    judge_question,
    system_prompt,
)

words = st.text(min_size=1).filter(str.strip)
exchanges = st.lists(st.builds(Exchange, prompt=words, reply=words))


@pytest.fixture(scope="module")
def charter(document: Callable[[], dict[str, Any]]) -> Charter:
    return Charter.model_validate(document())


def test_the_system_prompt_says_everything_once(charter: Charter) -> None:
    prompt = system_prompt(charter)
    parts = [charter.role, charter.tone.voice, charter.scope.otherwise]
    parts += [*charter.tone.do, *charter.tone.dont, *charter.scope.inside, *charter.scope.outside]
    parts += [text for rule in charter.rules for text in (rule.title, rule.text)]
    assert [prompt.count(part) for part in parts if part != "Bread"] == [1] * (len(parts) - 1)


@given(exchanges)
def test_few_shot_roles_alternate_and_nothing_is_lost(shown: list[Exchange]) -> None:
    messages = few_shot_messages(shown)
    assert [message["role"] for message in messages] == ["user", "assistant"] * len(shown)
    contents = [message["content"] for message in messages]
    assert [*zip(contents[::2], contents[1::2], strict=True)] == [(e.prompt, e.reply) for e in shown]


@given(st.text())
def test_a_question_comes_last_and_unchanged(charter: Charter, question: str) -> None:
    first, *shown, last = charter_messages(charter, question)
    assert first == {"role": "system", "content": system_prompt(charter)}
    assert shown == few_shot_messages(charter.few_shot)
    assert last == {"role": "user", "content": question}


def test_a_judge_is_asked_about_one_rule_and_for_yes_or_no(charter: Charter) -> None:
    for rule in charter.rules:
        question = judge_question(rule)
        assert question.endswith("Does the reply break the rule? Answer yes or no.")
        assert [other.text in question for other in charter.rules] == [other is rule for other in charter.rules]
        assert all(example.reply in question for example in (*rule.examples.good[:2], *rule.examples.bad[:2]))


def test_the_constitution_has_every_principle_and_every_rule(charter: Charter) -> None:
    clauses = constitution(charter)
    assert [name for name, _ in clauses] == [part.id for part in (*charter.principles, *charter.rules)]
    assert all(
        part.text in text for part, (_, text) in zip((*charter.principles, *charter.rules), clauses, strict=True)
    )
