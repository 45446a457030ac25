"""Best of n: its estimator against counting all subsets, and the bound of its divergence."""

from __future__ import annotations

from itertools import combinations
from math import comb, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.chat import user
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Sampling
from spiritlevel.train import best_of_n_kl, best_of_n_value, draw_rewarded, function_reward
from tiny import build_model

rewards = st.lists(st.integers(0, 4), min_size=1, max_size=7)


@given(rewards, st.data())
def test_the_estimate_is_the_mean_over_all_subsets_with_ties_broken_at_random(
    drawn: list[int], data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(drawn)))
    values = [float(data.draw(st.integers(-5, 5))) for _ in drawn]
    total = 0.0
    for subset in combinations(range(len(drawn)), n):
        best = max(drawn[index] for index in subset)
        ties = [values[index] for index in subset if drawn[index] == best]
        total += sum(ties) / len(ties)
    expected = total / comb(len(drawn), n)
    assert best_of_n_value(drawn, values, n) == pytest.approx(expected, abs=1e-9)


@given(rewards)
def test_the_best_of_one_is_the_mean_and_of_all_the_maximum(drawn: list[int]) -> None:
    assert best_of_n_value(drawn, drawn, 1) == pytest.approx(sum(drawn) / len(drawn))
    assert best_of_n_value(drawn, drawn, len(drawn)) == max(drawn)


def test_the_divergence_grows_from_nothing_and_less_than_log_n() -> None:
    assert best_of_n_kl(1) == 0
    found = [best_of_n_kl(n) for n in range(1, 50)]
    assert found == sorted(found) and all(value <= log(n) for n, value in enumerate(found, start=1))


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_was_drawn_is_an_error(n: int) -> None:
    with pytest.raises(SpiritLevelError, match="n is"):
        best_of_n_value([1, 2, 3], [1, 2, 3], n)


def test_replies_come_best_first_and_do_not_depend_on_their_batch() -> None:
    model = build_model()
    chats = [[user("hello")], [user("the user")]]
    reward = function_reward(lambda chat, reply: float(len(reply)), name="length")

    def draw(chosen: slice, samples: int) -> list[list[tuple[str, float]]]:
        found = draw_rewarded(model, chats[chosen], reward, Sampling(8, 1.0), samples=samples, seed=3)
        return [[(one.reply, score) for one, score in replies] for replies in found]

    both = draw(slice(None), 4)
    for replies in both:
        assert [score for _, score in replies] == sorted((score for _, score in replies), reverse=True)
        assert all(score == len(reply) for reply, score in replies)
    assert draw(slice(None), 4) == both
