"""Batched decoding against the plain way: one prompt, no cache, the whole sequence anew for every token."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import AttentionInterface

from spiritlevel.models import Completion, Sampling, decode, sampling, shared_start
from spiritlevel.models.sampling import APART_TOKENS, ROWS_PER_BATCH, choose_tokens, plan_prompts
from tiny import VOCABULARY, build_llama, build_qwen2

PAD = 0
NEW = 8
BUILD = {"llama": build_llama, "qwen2": build_qwen2}
WAYS = [Sampling(NEW), Sampling(NEW, temperature=1.0), Sampling(NEW, temperature=0.7, top_p=0.8)]
# A quarter of the vocabulary stops a reply, so that rows of a batch end at different times.
STOPS = frozenset(range(0, VOCABULARY, 4))

Prompt = tuple[int, ...]
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=8).map(tuple)


@st.composite
def prompts(draw: st.DrawFn) -> list[Prompt]:
    """Up to six prompts with a common beginning, which may be empty, a whole prompt, or all there is."""
    beginning = draw(tokens)
    tails = draw(st.lists(tokens, min_size=1, max_size=6))
    assume(beginning or all(tails))
    return [beginning + tail for tail in tails]


@cache
def shared_model(name: str) -> Any:
    return BUILD[name]()


def batched(
    model: Any, batch: list[Prompt], way: Sampling, *, stop: frozenset[int] = STOPS, share_start: bool = False
) -> list[Completion]:
    return decode(
        model, batch, way, stop_tokens=stop, pad_token=PAD, seeds=[sum(prompt) for prompt in batch],
        share_start=share_start,
    )  # fmt: skip


@torch.no_grad()
def one_by_one(model: Any, prompt: Prompt, way: Sampling, *, stop: frozenset[int] = STOPS) -> Completion:
    uniforms = np.random.Generator(np.random.Philox(key=sum(prompt))).random(way.max_new_tokens)
    written: list[int] = []
    for uniform in uniforms:
        logits = model(input_ids=torch.tensor([[*prompt, *written]])).logits[:, -1]
        greedy = way.temperature == 0
        chosen = logits.argmax(-1) if greedy else choose_tokens(logits, torch.tensor([uniform]), way)
        if chosen.item() in stop:
            return Completion(tuple(written), True)
        written.append(int(chosen))
    return Completion(tuple(written), False)


@pytest.mark.parametrize("way", WAYS, ids=["greedy", "sampled", "top-p"])
@pytest.mark.parametrize("name", BUILD)
@settings(max_examples=15)
@given(batch=prompts())
def test_a_reply_is_what_the_prompt_gets_alone(name: str, way: Sampling, batch: list[Prompt]) -> None:
    model = shared_model(name)
    assert batched(model, batch, way) == [one_by_one(model, prompt, way) for prompt in batch]


@pytest.mark.parametrize("way", WAYS, ids=["greedy", "sampled", "top-p"])
def test_without_a_stop_token_a_reply_has_the_length_asked_for(way: Sampling) -> None:
    batch = [(1, 2, 3), (1, 2), (4,)]
    never: frozenset[int] = frozenset()
    completions = batched(shared_model("llama"), batch, way, stop=never)
    assert [(len(c.tokens), c.finished) for c in completions] == [(NEW, False)] * 3
    assert completions == [one_by_one(shared_model("llama"), prompt, way, stop=never) for prompt in batch]


@pytest.mark.parametrize("compact_at", [1e-9, 0.25, 2.0], ids=["at-once", "default", "never"])
def test_dropping_finished_rows_changes_nothing(compact_at: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, way = shared_model("llama"), Sampling(16, temperature=1.0)
    batch = [(7, 7, *range(start, start + start % 5)) for start in range(12)]
    monkeypatch.setattr(sampling, "COMPACT_AT", compact_at)
    completions = batched(model, batch, way)
    assert len({len(completion.tokens) for completion in completions}) > 3
    assert completions == [one_by_one(model, prompt, way) for prompt in batch]


def test_each_token_is_told_as_it_comes() -> None:
    batch = [(1, 2, 3), (1, 9), (5,), (5, 6)]
    told: list[tuple[int, int]] = []
    completions = decode(
        shared_model("llama"),
        batch,
        WAYS[1],
        stop_tokens=STOPS,
        pad_token=PAD,
        seeds=[3, 1, 4, 1],
        on_token=lambda row, token: told.append((row, token)),
    )
    assert [tuple(token for row, token in told if row == index) for index in range(4)] == [
        completion.tokens for completion in completions
    ]


def test_a_seed_decides_and_another_decides_otherwise() -> None:
    def draw(seed: int) -> list[Completion]:
        return decode(shared_model("llama"), [(1, 2)], WAYS[1], stop_tokens=frozenset(), pad_token=PAD, seeds=[seed])

    assert draw(1) == draw(1)
    assert len({draw(seed)[0] for seed in range(5)}) == 5


# --- choosing a token --------------------------------------------------------------------------------

logits_rows = st.lists(st.floats(-6, 6), min_size=1, max_size=12).map(
    lambda row: torch.tensor([row], dtype=torch.float64)
)


def chosen_at(logits: torch.Tensor, uniforms: np.ndarray, way: Sampling) -> list[int]:
    rows = logits.expand(len(uniforms), -1)
    return choose_tokens(rows, torch.from_numpy(uniforms), way).tolist()


@given(logits_rows, st.floats(0, 1, exclude_max=True))
def test_temperature_0_is_the_arg_max(logits: torch.Tensor, uniform: float) -> None:
    assert chosen_at(logits, np.array([uniform]), Sampling(1)) == [int(logits.argmax())]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    uniforms = np.random.default_rng(0).random(40_000)
    counts = np.bincount(chosen_at(logits, uniforms, Sampling(1, temperature)), minlength=20)
    expected = (logits[0] / temperature).softmax(-1).numpy() * len(uniforms)
    assert chisquare(counts, expected).pvalue > 1e-3


@given(logits_rows, st.floats(0.2, 3), st.integers(10, 2000))
def test_evenly_spread_uniforms_give_each_token_its_share(logits: torch.Tensor, temperature: float, count: int) -> None:
    uniforms = (np.arange(count) + 0.5) / count
    found = np.bincount(chosen_at(logits, uniforms, Sampling(1, temperature)), minlength=logits.shape[-1])
    share = (logits[0] / temperature).softmax(-1).numpy()
    assert np.abs(found - count * share).max() <= 1 + 1e-6


@given(logits_rows, st.floats(0.01, 0.999))
def test_top_p_keeps_exactly_the_smallest_set_with_that_mass(logits: torch.Tensor, top_p: float) -> None:
    share = logits[0].softmax(-1).numpy()
    falling = np.sort(share)[::-1]
    mass = falling.cumsum()
    assume(np.abs(mass - top_p).min() > 1e-9)
    size = int(np.argmax(mass >= top_p)) + 1 if mass[-1] >= top_p else len(mass)
    # One uniform in the middle of each kept token's share finds them all, and no uniform finds another.
    kept = mass[:size] / mass[size - 1]
    middles = (np.concatenate([[0], kept[:-1]]) + kept) / 2
    found = chosen_at(logits, middles, Sampling(1, 1.0, top_p))
    assert len(set(found)) == size
    assert np.allclose(np.sort(share[found])[::-1], falling[:size])
    ends = np.array([0.0, np.nextafter(1, 0), *np.linspace(0, 1, 50, endpoint=False)])
    assert set(chosen_at(logits, ends, Sampling(1, 1.0, top_p))) <= set(found)


@given(logits_rows)
def test_the_ends_of_the_unit_interval_stay_in_the_vocabulary(logits: torch.Tensor) -> None:
    ends = np.array([0.0, np.nextafter(1, 0)])
    for way in WAYS:
        assert all(0 <= token < logits.shape[-1] for token in chosen_at(logits, ends, way))


# --- planning batches --------------------------------------------------------------------------------

few = st.integers(0, 2)
many_prompts = st.lists(st.lists(few, min_size=1, max_size=6), max_size=100)


@given(many_prompts)
def test_a_plan_holds_every_prompt_once_in_batches_that_fit(batch: list[list[int]]) -> None:
    plan = plan_prompts(batch)
    assert sorted(index for rows in plan for index in rows) == list(range(len(batch)))
    assert all(1 <= len(rows) <= ROWS_PER_BATCH for rows in plan)
    assert plan == plan_prompts(batch) == plan_prompts([tuple(prompt) for prompt in batch])


@given(many_prompts, st.randoms(use_true_random=False))
def test_a_plan_depends_on_the_prompts_not_on_their_order(batch: list[list[int]], random: Any) -> None:
    shuffled = random.sample(batch, len(batch))
    plan = [[batch[index] for index in rows] for rows in plan_prompts(batch)]
    assert plan == [[shuffled[index] for index in rows] for rows in plan_prompts(shuffled)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=120))
def test_planning_one_batch_again_leaves_it_whole(pairs: list[tuple[int, int]]) -> None:
    # `answer_all` generates a batch through `generate`, which plans anew.
    batch = [(first,) * 60 + (second,) for first, second in pairs]
    for rows in plan_prompts(batch):
        assert plan_prompts([batch[index] for index in rows]) == [list(range(len(rows)))]


def test_a_long_shared_beginning_is_not_given_up_for_a_fuller_batch() -> None:
    batch = [(beginning,) * 60 + (tail,) for beginning in range(3) for tail in range(15)]
    assert [len(rows) for rows in plan_prompts(batch)] == [15, 15, 15]


def test_prompts_that_share_little_are_batched_by_length() -> None:
    batch = [(index, *[7] * (index * 11 % 50)) for index in range(80)]
    lengths = [[len(batch[index]) for index in rows] for rows in plan_prompts(batch)]
    assert [len(rows) for rows in lengths] == [40, 40]
    assert [length for rows in lengths for length in rows] == sorted(map(len, batch))


def test_a_family_within_a_family_gets_its_own_batch() -> None:
    batch = [(1,) * 60 + (tail % 2,) * 60 + (tail,) for tail in range(24)] + [(3, tail) for tail in range(5)]
    assert sorted(len(rows) for rows in plan_prompts(batch)) == [5, 12, 12]


# --- a long common start -----------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", BUILD)
def test_a_start_that_is_kept_once_for_all_rows_changes_nothing(
    name: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of unequal length, each drawn several times, some of which end early."""
    model = BUILD[name]()
    model.config._attn_implementation = implementation
    start = tuple(range(3, 3 + APART_TOKENS + 8))
    batch = [(*start, *range(50, 50 + extra), number) for extra in (1, 4, 9) for number in (60, 60, 61)]
    attended: list[int] = []
    attend = shared_start._attend

    def watch(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        attended.append(query.shape[0])
        return attend(module, query, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, shared_start._NAME, watch)
    found = batched(model, batch, WAYS[1], share_start=True)
    assert attended[0] == 6, "a prompt that comes twice is computed once"
    assert len(set(attended)) > 2, "finished rows are dropped"
    assert model.config._attn_implementation == implementation
    for prompt, completion in zip(batch, found, strict=True):
        assert completion == one_by_one(model, prompt, WAYS[1])


@pytest.mark.parametrize("setting", [{"sliding_window": 16}, {"attn_logit_softcapping": 30.0}])
def test_an_attention_that_is_not_the_plain_one_keeps_its_own_way(setting: dict[str, Any]) -> None:
    model = build_llama()
    cache_of_rows = DynamicCache(config=model.config)
    assert shared_start.can_share_start(model, cache_of_rows)
    for key, value in setting.items():
        setattr(model.config, key, value)
    assert not shared_start.can_share_start(model, cache_of_rows)
