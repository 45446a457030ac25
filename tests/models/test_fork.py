"""A fork's row shows each continuation exactly what it would see alone."""

from __future__ import annotations

import random
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spiritlevel.models import Fork, lay_out, plan_batches
from spiritlevel.models.fork import ROW_MULTIPLE, SHARED_SAVES

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


@given(batches(), st.sampled_from([None, 1, SHARED_SAVES]))
def test_each_scored_token_is_predicted_from_its_own_past_alone(batch: list[Fork], saves: int | None) -> None:
    layout = lay_out(batch, PAD, saves=saves)
    common = len(layout.start)
    scored = zip(layout.row.tolist(), layout.column.tolist(), layout.targets.tolist(), strict=True)
    expected = [
        (index, (*fork.prompt, *continuation[:place]), continuation[place])
        for index, fork in enumerate(batch)
        for continuation in fork.continuations
        for place in range(len(continuation))
    ]
    seen = []
    for row, column, target in scored:
        assert layout.sees[row, column, :common].all()
        visible = layout.sees[row, column, common:]
        assert layout.positions[row, visible].tolist() == list(range(common, common + int(visible.sum())))
        seen.append((row, (*layout.start.tolist(), *layout.tokens[row, visible].tolist()), target))
    assert seen == expected


@given(batches())
def test_owners_count_the_continuations_through_the_batch(batch: list[Fork]) -> None:
    layout = lay_out(batch, PAD)
    lengths = [len(continuation) for fork in batch for continuation in fork.continuations]
    assert layout.continuations == len(lengths)
    assert torch.bincount(layout.owner).tolist() == lengths
    assert layout.owner.tolist() == sorted(layout.owner.tolist())
    assert len(layout.targets) == sum(fork.scored for fork in batch)


@given(batches())
def test_the_rows_hold_the_longest_fork_and_the_rest_is_unseen_padding(batch: list[Fork]) -> None:
    layout = lay_out(batch, PAD)
    rows, length = layout.tokens.shape
    common = len(layout.start)
    assert rows == len(batch)
    assert layout.sees.shape == (rows, length, common + length)
    lengths = [fork.length - common for fork in batch]
    assert length % ROW_MULTIPLE == 0 and 0 <= length - max(lengths) < ROW_MULTIPLE
    for row, end in enumerate(lengths):
        assert (layout.tokens[row, :end] != PAD).all()
        assert (layout.tokens[row, end:] == PAD).all()
        assert not layout.sees[row, :end, common + end :].any()
    assert layout.sees.any(-1).all(), "a position that sees nothing would be NaN after the softmax"


@given(batches())
def test_a_start_is_shared_if_it_is_long_enough_and_never_the_whole_of_a_prompt(batch: list[Fork]) -> None:
    layout = lay_out(batch, PAD)
    common = len(layout.start)
    assert common == 0 or common * (len(batch) - 1) >= SHARED_SAVES
    assert all(fork.prompt[:common] == tuple(layout.start.tolist()) for fork in batch)
    assert common < min(len(fork.prompt) for fork in batch)
    prompts = [fork.prompt for fork in batch]
    if len(batch) > 1 and all(len(p) > SHARED_SAVES and p[:SHARED_SAVES] == prompts[0][:SHARED_SAVES] for p in prompts):
        assert common >= SHARED_SAVES, "it was worth sharing"
    assert len(lay_out(batch, PAD, saves=None).start) == 0


def test_the_common_start_of_a_batch_is_laid_out_once() -> None:
    start = tuple(range(1, 65))
    layout = lay_out([Fork((*start, last), ((5,), (6, 7))) for last in (91, 92, 93)], PAD)
    assert tuple(layout.start.tolist()) == start
    assert layout.tokens.shape == (3, ROW_MULTIPLE)
    assert layout.tokens[:, 0].tolist() == [91, 92, 93]


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
