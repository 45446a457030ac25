"""A fork's row shows each continuation exactly what it would see alone."""

from __future__ import annotations

import random
from itertools import takewhile
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.models import Fork, lay_out, plan_batches
from spiritlevel.models.fork import ROW_MULTIPLE, ROW_TOKENS, SHARED_SAVES

PAD = 0
tokens = st.lists(st.integers(1, 99), min_size=1, max_size=6).map(tuple)
forks = st.builds(Fork, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple))
# Around what a batch of two, three or four must have in common.
starts = st.sampled_from([0, 1, 42, 43, 44, 63, 64, 65, 127, 128, 129])


@st.composite
def batches(draw: st.DrawFn) -> list[Fork]:
    """Forks whose prompts begin alike, or not."""
    source = random.Random(draw(st.integers(0, 99)))
    start = tuple(source.randint(1, 99) for _ in range(draw(starts)))
    return [Fork(start + fork.prompt, fork.continuations) for fork in draw(st.lists(forks, min_size=1, max_size=4))]


@pytest.mark.parametrize(("prompt", "continuations"), [((), ((1,),)), ((1,), ()), ((1,), ((),)), ((1,), ((1, 2), ()))])
def test_nothing_in_a_fork_may_be_empty(prompt: tuple[int, ...], continuations: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="none of them empty"):
        Fork(prompt, continuations)


@given(batches(), st.sampled_from([None, 0, 1, SHARED_SAVES]))
def test_each_scored_token_is_predicted_from_its_own_past_alone(batch: list[Fork], saves: int | None) -> None:
    layout = lay_out(batch, PAD, saves=saves)
    apart = len(layout.start)
    expected = [
        ((*fork.prompt, *continuation[:place]), continuation[place])
        for fork in batch
        for continuation in fork.continuations
        for place in range(len(continuation))
    ]
    seen = []
    for row, column, target in zip(layout.row, layout.column, layout.targets.tolist(), strict=True):
        assert layout.sees[row, column, :apart].all()
        visible = layout.sees[row, column, apart:]
        assert layout.positions[row, visible].tolist() == list(range(apart, apart + int(visible.sum())))
        seen.append(((*layout.start.tolist(), *layout.tokens[row, visible].tolist()), target))
    assert seen == expected


@given(batches())
def test_owners_count_the_continuations_through_the_batch(batch: list[Fork]) -> None:
    layout = lay_out(batch, PAD)
    lengths = [len(continuation) for fork in batch for continuation in fork.continuations]
    assert layout.continuations == len(lengths)
    assert torch.bincount(layout.owner).tolist() == lengths
    assert layout.owner.tolist() == sorted(layout.owner.tolist())
    assert len(layout.targets) == sum(fork.scored for fork in batch)


@given(batches(), st.sampled_from([None, 0, SHARED_SAVES]))
def test_rows_hold_every_fork_once_as_short_as_they_can_be_and_padding_is_unseen(
    batch: list[Fork], saves: int | None
) -> None:
    layout = lay_out(batch, PAD, saves=saves)
    rows, length = layout.tokens.shape
    apart = len(layout.start)
    assert layout.sees.shape == (rows, length, apart + length)
    assert layout.sees.any(-1).all(), "a position that sees nothing would be NaN after the softmax"
    real = layout.tokens != PAD
    common = len(shared(batch))
    assert apart in (0, common)
    assert int(real.sum()) == sum(fork.length - common for fork in batch) + (0 if apart else rows * common)
    filled = real.sum(1).tolist()
    assert length % ROW_MULTIPLE == 0 and 0 <= length - max(filled) < ROW_MULTIPLE
    for row, end in enumerate(filled):
        assert real[row, :end].all() and not layout.sees[row, :end, apart + end :].any()
    room = ROW_TOKENS if apart else max(ROW_TOKENS, 2 * common)
    assert max(filled) <= max(room, *(fork.length for fork in batch))


@given(batches())
def test_a_start_is_laid_out_apart_if_that_saves_enough_and_never_the_whole_of_a_prompt(batch: list[Fork]) -> None:
    layout = lay_out(batch, PAD)
    apart = len(layout.start)
    assert apart == 0 or apart * (len(layout.tokens) - 1) >= SHARED_SAVES
    assert all(fork.prompt[:apart] == tuple(layout.start.tolist()) for fork in batch)
    assert apart < min(len(fork.prompt) for fork in batch)
    assert len(lay_out(batch, PAD, saves=None).start) == 0
    assert tuple(lay_out(batch, PAD, saves=0).start.tolist()) == shared(batch)


@pytest.mark.parametrize(("pairs", "saves", "apart", "shape"), [
    (3, SHARED_SAVES, 0, (1, 80)),  # one row holds all: 64 + 3 · 4
    (3, 0, 64, (1, 16)),
    (100, None, 0, (3, 208)),  # 64 + 34 · 4
    (100, SHARED_SAVES, 0, (3, 208)),  # apart in two rows it would save one start
    (200, SHARED_SAVES, 64, (4, 208)),  # 50 · 4
])  # fmt: skip
def test_what_prompts_have_in_common_stands_once_a_row_or_once(
    pairs: int, saves: int | None, apart: int, shape: tuple[int, int]
) -> None:
    start = tuple(range(1, 65))
    layout = lay_out([Fork((*start, 100 + last), ((5, 6), (7, 8, 9))) for last in range(pairs)], PAD, saves=saves)
    assert tuple(layout.start.tolist()) == start[:apart]
    assert layout.tokens.shape == shape
    if not apart:
        assert layout.tokens[:, :64].tolist() == [list(start)] * len(layout.tokens)


def test_long_forks_get_rows_of_their_own() -> None:
    long = tuple(range(1, ROW_TOKENS))
    layout = lay_out([Fork((place, *long), ((1, 2), (3, 4))) for place in (200, 201, 202)], PAD)
    assert len(layout.tokens) == 3


def shared(batch: list[Fork]) -> tuple[int, ...]:
    """What all prompts begin with, without the last token of any."""
    places = zip(*(fork.prompt[:-1] for fork in batch), strict=False)
    return tuple(place[0] for place in takewhile(lambda place: len(set(place)) == 1, places))


def padded(length: int) -> int:
    return ceil(length / ROW_MULTIPLE) * ROW_MULTIPLE


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 240))
def test_a_plan_holds_every_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    plan = plan_batches(lengths, budget)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or max(padded(lengths[index]) for index in batch) * len(batch) <= budget
    assert plan == plan_batches(lengths, budget)


@given(st.lists(st.integers(1, 50), min_size=2, max_size=40), st.integers(1, 120))
def test_a_plan_is_sorted_and_fills_each_batch_before_the_next(lengths: list[int], budget: int) -> None:
    plan = plan_batches(lengths, budget)
    flat = [lengths[index] for batch in plan for index in batch]
    assert flat == sorted(lengths, reverse=True)
    for batch in plan[:-1]:
        assert padded(lengths[batch[0]]) * (len(batch) + 1) > budget
