"""Batched decoding: the batch's common prefix once, a growing KV cache without copies, finished rows dropped.

Each row draws from a random stream of its own seed, so what a prompt gets does not depend on its batch mates
(exactly so in float64; in bfloat16 a near tie may fall the other way when padding changes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from spiritlevel.models.fork import shared_start
from spiritlevel.models.scoring import bare
from spiritlevel.models.shared_start import RowLayer, attention_to_start, can_share_start

# Rows decoded together: with more, two cores give hardly more tokens a second and the cache grows.
ROWS_PER_BATCH = 40
# Prompts that share this many tokens more than the rest, and are this many, get batches of their own.
FAMILY_TOKENS, FAMILY_ROWS = 48, 12
# A common start is kept once for all rows from so many rows and tokens on.
APART_ROWS, APART_TOKENS = 4, 32
# Rows are compacted when this share of them has finished: dropping one row copies the whole cache.
COMPACT_AT = 0.25


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_p < 1 keeps the smallest set with that mass."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Completion:
    """Token ids without the stop token; `finished` when the model stopped by itself.

    drawn: if asked for, all tokens with the stop token, and for each its log-probability when it was drawn.
    """

    tokens: tuple[int, ...]
    finished: bool
    drawn: tuple[tuple[int, float], ...] = ()


def plan_prompts(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of prompts in batches: families with a long common beginning, which is computed once a batch, the
    others by their length, so that little is padded."""
    return _plan([tuple(prompt) for prompt in prompts], range(len(prompts))) if prompts else []


def _plan(prompts: Sequence[tuple[int, ...]], group: Sequence[int]) -> list[list[int]]:
    shared = shared_start([prompts[index] for index in group])
    families: dict[tuple[int, ...], list[int]] = {}
    for index in group:
        families.setdefault(prompts[index][shared : shared + FAMILY_TOKENS], []).append(index)
    large = {start: members for start, members in families.items() if FAMILY_ROWS <= len(members) < len(group)}
    loose = [index for start, members in families.items() if start not in large for index in members]
    loose.sort(key=lambda index: (len(prompts[index]), prompts[index], index))
    count = -(-len(loose) // ROWS_PER_BATCH)
    cuts = [len(loose) * place // max(count, 1) for place in range(count + 1)]
    batches = [loose[start:end] for start, end in pairwise(cuts)]
    return [*(batch for start in sorted(large) for batch in _plan(prompts, large[start])), *batches]


@torch.inference_mode()
def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_tokens: frozenset[int],
    pad_token: int,
    seeds: Sequence[int],
    on_token: Callable[[int, int], None] | None = None,
    keep_drawn: bool = False,
    share_start: bool = False,
) -> list[Completion]:
    """Continue every prompt; `on_token(row, token)` is told each token as it comes.

    `model` is a Hugging Face causal language model in eval mode. One call is one batch. A prompt that is given
    several times is computed once. The log-probabilities of `keep_drawn` are at the sampling's temperature; with
    temperature 0 or top_p < 1 they are still the whole distribution's. share_start: keep a long common start once for
    all rows; a third faster behind 300 tokens, but in bfloat16 it rounds otherwise, so that a near tie may fall the
    other way than in a reply that was drawn without it.
    """
    device = model.get_input_embeddings().weight.device
    cache, mask, logits = _prefill(model, prompts, sampling.max_new_tokens, pad_token, device, share_start)
    drawn: list[list[tuple[int, float]]] = [[] for _ in prompts]
    draws = [np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_new_tokens) for seed in seeds]
    written: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    live = list(range(len(prompts)))  # the prompt that each row of the cache belongs to
    for step in range(sampling.max_new_tokens):
        uniform = torch.tensor([draws[index][step] for index in live], dtype=torch.float64, device=device)
        chosen = choose_tokens(logits, uniform, sampling)
        if keep_drawn:
            for index, token, value in zip(live, chosen.tolist(), _logprobs(logits, chosen, sampling), strict=True):
                if not stopped[index]:
                    drawn[index].append((token, value))
        for index, token in zip(live, chosen.tolist(), strict=True):
            if not stopped[index] and token in stop_tokens:
                stopped[index] = True
            elif not stopped[index]:
                written[index].append(token)
                if on_token is not None:
                    on_token(index, token)
        if step + 1 == sampling.max_new_tokens or all(stopped):
            break
        if sum(stopped[index] for index in live) >= COMPACT_AT * len(live):
            keep = torch.tensor([row for row, index in enumerate(live) if not stopped[index]], device=device)
            live = [index for index in live if not stopped[index]]
            cache.batch_select_indices(keep)
            mask, chosen = mask[keep], chosen[keep]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
        with attention_to_start(bare(model), cache):
            logits = model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
    return [
        Completion(tuple(tokens), end, tuple(kept)) for tokens, end, kept in zip(written, stopped, drawn, strict=True)
    ]


def _logprobs(logits: Tensor, chosen: Tensor, sampling: Sampling) -> list[float]:
    scaled = logits.float() / (sampling.temperature or 1.0)
    return (scaled.gather(-1, chosen[:, None])[:, 0] - scaled.logsumexp(-1)).tolist()


def choose_tokens(
    logits: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, " rows"], sampling: Sampling
) -> Int[Tensor, " rows"]:
    """One token a row: the arg max, or the inverse of the cumulative distribution at `uniform` in [0, 1)."""
    if sampling.temperature == 0.0:
        return logits.argmax(-1)
    probabilities = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1.0:
        cumulative = probabilities.cumsum(-1)
        place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
        return place[:, 0].clamp(max=logits.shape[-1] - 1)
    probabilities, order = probabilities.sort(-1, descending=True)
    cumulative = probabilities.cumsum(-1)
    # The mass kept: up to and including the token that crosses top_p.
    kept = (cumulative - probabilities < sampling.top_p).sum(-1, keepdim=True)
    mass = cumulative.gather(-1, kept - 1)
    place = torch.searchsorted(cumulative, uniform[:, None] * mass, right=True).minimum(kept - 1)
    return order.gather(-1, place)[:, 0]


def _prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    room: int,
    pad_token: int,
    device: torch.device,
    share_start: bool,
) -> tuple[DynamicCache, Int[Tensor, "rows length"], Float[Tensor, "rows vocabulary"]]:
    """The cache, attention mask and next-token logits after all prompts.

    What the prompts share at their start is computed for one row and repeated, or kept once for all, and a prompt that
    comes several times is computed once; the rest is padded on the left.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    shared = shared_start([prompt[:-1] for prompt in distinct])
    rest = [prompt[shared:] for prompt in distinct]
    width = max(map(len, rest))
    apart = share_start and len(prompts) >= APART_ROWS and shared >= APART_TOKENS
    cache = _start(model, distinct[0][:shared], width + room, rows=len(distinct), apart=apart, device=device)
    tokens = torch.tensor([(pad_token,) * (width - len(tail)) + tail for tail in rest], device=device)
    seen = torch.tensor([(0,) * (width - len(tail)) + (1,) * len(tail) for tail in rest], device=device)
    mask = torch.cat([seen.new_ones(len(distinct), shared), seen], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
    with attention_to_start(bare(model), cache):
        logits = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    if len(distinct) == len(prompts):
        return cache, mask, logits
    row_of = {prompt: row for row, prompt in enumerate(distinct)}
    rows = torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=device)
    cache.batch_select_indices(rows)
    return cache, mask[rows], logits[rows]


def _start(
    model: Any, tokens: Sequence[int], room: int, *, rows: int, apart: bool, device: torch.device
) -> DynamicCache:
    """A cache that holds the common start of so many rows: once for all if it is `apart` and the model allows, else for
    each."""
    cache = DynamicCache(config=model.config)
    apart = apart and can_share_start(bare(model), cache)
    cache.layers = [RowLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if not tokens:
        return cache
    model(input_ids=torch.tensor([tokens], device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    if apart:
        cache.layers = [layer.as_start(room) for layer in cache.layers if isinstance(layer, RowLayer)]
    else:
        cache.batch_repeat_interleave(rows)
    return cache
