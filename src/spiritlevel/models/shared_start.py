"""Decoding many rows behind one common start: its keys and values are kept and read once a layer, not once a row.

Attention over the start is then one matrix product for all rows (as in cascade inference and Hydragen, Juravsky et al.
2024, arXiv:2402.05099), and joins what a row sees of itself in one softmax. It is the model's own attention, reordered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

_NAME = "spiritlevel_shared_start"
_CACHE: ContextVar[DynamicCache] = ContextVar(_NAME)


class RowLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer with room to grow, so that a step writes in place instead of copying all that came before.

    start: keys and values [1, heads, shared, width] that come before those of every row, possibly none.
    """

    def __init__(self, reserve: int, start: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reserve = reserve
        self.start = start
        self.store: tuple[Tensor, Tensor] | None = None

    @property
    def own_length(self) -> int:
        return 0 if self.keys is None or self.keys.numel() == 0 else self.keys.shape[-2]

    def get_seq_length(self) -> int:
        return self.own_length + (0 if self.start is None else self.start[0].shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.own_length
        new = old + key_states.shape[-2]
        if self.store is None or self.store[0].shape[-2] < new:
            rows, heads, _, width = key_states.shape
            self.store = (
                key_states.new_empty(rows, heads, new + self.reserve, width),
                value_states.new_empty(rows, heads, new + self.reserve, value_states.shape[-1]),
            )
            if self.keys is not None and self.values is not None and old:
                self.store[0][:, :, :old] = self.keys
                self.store[1][:, :, :old] = self.values
        self.store[0][:, :, old:new] = key_states
        self.store[1][:, :, old:new] = value_states
        self.keys, self.values = self.store[0][:, :, :new], self.store[1][:, :, :new]
        return self.keys, self.values

    def as_start(self, reserve: int) -> RowLayer:
        """An empty layer for rows that come after what this one holds."""
        assert self.keys is not None and self.values is not None
        return RowLayer(reserve, (self.keys, self.values))

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.own_length:
            super().batch_repeat_interleave(repeats)
        self.store = None

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.own_length:
            super().batch_select_indices(indices)
        self.store = None


def can_share_start(model: Any, cache: DynamicCache) -> bool:
    """Whether this model's attention is the plain one that is reordered here, in all layers."""
    config = model.config
    plain = config._attn_implementation in ("sdpa", "eager") and getattr(model, "_supports_attention_backend", False)
    special = (getattr(config, name, None) for name in ("attn_logit_softcapping", "sliding_window"))
    return plain and not any(special) and all(type(layer) in (DynamicLayer, RowLayer) for layer in cache.layers)


@contextmanager
def attention_to_start(model: Any, cache: DynamicCache) -> Iterator[None]:
    """While this lasts, `model` attends to the starts in the layers of `cache` too, if there are any."""
    if not any(getattr(layer, "start", None) for layer in cache.layers):
        yield
        return
    config, usual = model.config, model.config._attn_implementation
    token = _CACHE.set(cache)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
        _CACHE.reset(token)


def _attend(
    module: Any,
    query: Float[Tensor, "rows heads length width"],
    key: Float[Tensor, "rows groups own width"],
    value: Float[Tensor, "rows groups own width"],
    attention_mask: Float[Tensor, "rows 1 length shared+own"],
    scaling: float,
    **_: Any,
) -> tuple[Float[Tensor, "rows length heads width"], None]:
    start_key, start_value = _CACHE.get().layers[module.layer_idx].start
    shared = start_key.shape[-2]
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    # Heads that share keys and values stand side by side: [rows, groups, heads a group · length, width].
    asked = query.reshape(rows, groups, -1, width)
    together = asked.transpose(0, 1).reshape(groups, -1, width)
    to_start = (together @ start_key[0].transpose(1, 2)).view(groups, rows, -1, shared).transpose(0, 1)
    hidden = attention_mask[..., shared:].repeat(1, 1, heads // groups, 1)
    scores = torch.cat([to_start * scaling, (asked @ key.transpose(2, 3)) * scaling + hidden], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    of_start = weights[..., :shared].transpose(0, 1).reshape(groups, -1, shared) @ start_value[0]
    found = of_start.view(groups, rows, -1, width).transpose(0, 1) + weights[..., shared:] @ value
    return found.reshape(rows, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, eager_mask)
