"""Log-probabilities of the continuations of forks, with gradients.

The trunk runs once over each row; the output head runs only where a continuation token is predicted, in
chunks, and never keeps logits: for a frozen head the gradient is finished in the forward pass (the trick of
Liger-Kernel's fused linear cross-entropy), for a trained head the chunk is computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils.checkpoint
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.integrations.fsdp import is_fsdp_managed_module

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models.fork import SHARED_SAVES, Fork, Layout, lay_out, plan_batches

# A chunk of logits [tokens, vocabulary] in float32 stays under this many bytes.
LOGIT_CHUNK_BYTES = 64 * 2**20
# In bfloat16 on a CPU, plain attention beats the fused kernel on rows of 96 to 384 tokens, forward and backward;
# `benchmarks/fork_layouts.py` compares them. The limit is lower because the backward pass keeps its weights, which grow
# with the square of the length.
PLAIN_ATTENTION_UP_TO = 256


@dataclass(frozen=True)
class ForkScores:
    """Log-probabilities of every scored token, in the order of the forks and their continuations.

    logprobs: [scored], float32; owner: [scored], the continuation each belongs to, counted through.
    """

    logprobs: Float[Tensor, " scored"]
    owner: Int[Tensor, " scored"]
    continuations: int

    def sums(self, first: int | None = None) -> Float[Tensor, " continuations"]:
        """log π(y|x) of each continuation, or of its `first` tokens."""
        logprobs = self.logprobs if first is None else self.logprobs.masked_fill(self.places() >= first, 0.0)
        return logprobs.new_zeros(self.continuations).index_add(0, self.owner, logprobs)

    def counts(self) -> Int[Tensor, " continuations"]:
        """Tokens of each continuation."""
        return torch.bincount(self.owner, minlength=self.continuations)

    def places(self) -> Int[Tensor, " scored"]:
        """The place of each scored token in its continuation, from 0."""
        counts = self.counts()
        starts = counts.cumsum(0) - counts
        return torch.arange(len(self.owner), device=self.owner.device) - starts[self.owner]


def score_batch(model: Any, forks: Sequence[Fork], *, pad_token: int, temperature: float = 1.0) -> ForkScores:
    """Score one micro-batch with a Hugging Face causal language model (or PEFT model), with gradients if enabled.

    temperature: of the sampling whose log-probabilities are asked for.
    """
    return score_layout(model, lay_out_for(model, forks, pad_token=pad_token), temperature)


def lay_out_for(model: Any, forks: Sequence[Fork], *, pad_token: int) -> Layout:
    """Rows as this model can take them: with the common start apart where its layers keep keys and values."""
    return lay_out(forks, pad_token, saves=SHARED_SAVES if _shares_starts(model) else None)


def score_layout(model: Any, layout: Layout, temperature: float = 1.0) -> ForkScores:
    """Score one laid-out micro-batch."""
    _, head, transform = _parts(model)
    transform = replace(transform, temperature=temperature)
    layout = layout.to(head.weight.device)
    predicting = predicting_states(model, layout)
    logprobs = token_logprobs(predicting, head.weight, head.bias, layout.targets, transform)
    return ForkScores(logprobs, layout.owner, layout.continuations)


def predicting_states(model: Any, layout: Layout) -> Float[Tensor, "scored width"]:
    """The trunk's last hidden states where the scored tokens are predicted: what a head reads."""
    trunk = trunk_of(model)
    layout = layout.to(trunk.device)
    dtype = trunk.dtype
    mask = torch.zeros(layout.sees.shape, dtype=dtype, device=layout.sees.device)
    mask = mask.masked_fill_(~layout.sees, torch.finfo(dtype).min)[:, None]
    with _attention_for(trunk, layout):
        cache = None
        if layout.start.numel():
            cache = DynamicCache()
            trunk(input_ids=layout.start[None], past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(layout.tokens))
        hidden = trunk(
            input_ids=layout.tokens,
            attention_mask=mask,
            position_ids=layout.positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
    return hidden[layout.row, layout.column]  # type: ignore[no-any-return]


@torch.no_grad()  # weights that are sharded and first gathered in inference mode could never be trained
def score_forks(model: Any, forks: Sequence[Fork], *, pad_token: int, token_budget: int) -> list[list[float]]:
    """log π(y|x) of every continuation of every fork, without gradients, in the order given."""
    sums: list[list[float]] = [[] for _ in forks]
    for batch in plan_batches([fork.length for fork in forks], token_budget):
        scored = score_batch(model, [forks[index] for index in batch], pad_token=pad_token).sums().tolist()
        for index in batch:
            count = len(forks[index].continuations)
            sums[index], scored = scored[:count], scored[count:]
    return sums


@torch.inference_mode()
def score_tokens(
    model: Any, forks: Sequence[Fork], *, pad_token: int, token_budget: int, temperature: float = 1.0
) -> list[list[float]]:
    """The log-probability of every scored token of every fork, without gradients, in the order given."""
    tokens: list[list[float]] = [[] for _ in forks]
    for batch in plan_batches([fork.length for fork in forks], token_budget):
        scores = score_batch(model, [forks[index] for index in batch], pad_token=pad_token, temperature=temperature)
        scored = scores.logprobs.tolist()
        for index in batch:
            tokens[index], scored = scored[: forks[index].scored], scored[forks[index].scored :]
    return tokens


@torch.inference_mode()
def verify_engine(model: Any, fork: Fork, *, pad_token: int) -> None:
    """Compare the engine with the model's own plain forward pass on one fork.

    Raises SpiritLevelError if an architecture does something between trunk and logits, or with masks, that
    the engine does not know. Cheap enough to run once before each training.
    """
    layouts = [lay_out([fork, fork], pad_token, saves=None)]
    if _shares_starts(model):
        layouts.append(lay_out([fork, fork], pad_token, saves=0))
    plain = []
    for continuation in fork.continuations:
        ids = torch.tensor([[*fork.prompt, *continuation]], device=model.get_input_embeddings().weight.device)
        logits = model(input_ids=ids, logits_to_keep=len(continuation) + 1).logits[0, :-1].float()
        plain.append(logits.log_softmax(-1).gather(-1, ids[0, len(fork.prompt) :, None]).sum())
    expected = torch.stack(plain)
    tokens = torch.tensor([len(continuation) for continuation in fork.continuations], device=expected.device)
    halved = _parts(model)[1].weight.dtype in (torch.bfloat16, torch.float16)
    tolerance = (0.1 if halved else 1e-3) * tokens
    for layout in layouts:
        fast = score_layout(model, layout).sums().view(-1, len(fork.continuations))
        if not bool(((fast - expected).abs() <= tolerance).all()):
            raise SpiritLevelError(
                f"the scoring engine disagrees with {type(model).__name__}: {fast.tolist()}, not {expected.tolist()}",
                remedy="This architecture is not supported yet; please report it with the model's config.json.",
            )


def token_logprobs(
    hidden: Float[Tensor, "scored width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    targets: Int[Tensor, " scored"],
    transform: LogitTransform | None = None,
) -> Float[Tensor, " scored"]:
    """log softmax(hidden · weightᵀ + bias) at the target ids, without keeping logits."""
    transform = transform or LogitTransform()
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    size = max(1, LOGIT_CHUNK_BYTES // (4 * weight.shape[0]))
    chunks = []
    for part, ids in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        if trained and torch.is_grad_enabled():
            chunks.append(
                torch.utils.checkpoint.checkpoint(_plain, part, weight, bias, ids, transform, use_reentrant=False)
            )
        elif torch.is_grad_enabled() and part.requires_grad:
            chunks.append(_FrozenHead.apply(part, weight, bias, ids, transform))  # type: ignore[no-untyped-call]
        else:
            chunks.append(_plain(part, weight, bias, ids, transform))
    return torch.cat(chunks)


@dataclass(frozen=True)
class LogitTransform:
    """What an architecture does to its logits: scale, then soft cap c·tanh(x/c); then the temperature of the sampling
    divides them. None and 1: nothing."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits.double() if logits.dtype == torch.float64 else logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1.0 else logits / self.temperature

    def derivative(self, transformed: Tensor) -> Tensor | float:
        """d transformed / d raw, given the transformed logits."""
        slope = self.scale / self.temperature
        if self.softcap is None:
            return slope
        return slope * (1 - (transformed * self.temperature / self.softcap) ** 2)


def _plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, transform: LogitTransform) -> Tensor:
    logits = transform(torch.nn.functional.linear(hidden, weight, bias))
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


class _FrozenHead(torch.autograd.Function):
    """∂ log p(t) / ∂ hidden = (W[t] − softmax · W), one vector a token, so it is made where the logits are."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
    ) -> Tensor:
        logits = transform(torch.nn.functional.linear(hidden, weight, bias))
        normaliser = logits.logsumexp(-1)
        chosen = logits.gather(-1, targets[:, None])[:, 0]
        slope = transform.derivative(logits)
        probabilities = logits.sub_(normaliser[:, None]).exp_()
        probabilities.neg_().scatter_add_(1, targets[:, None], torch.ones_like(targets[:, None], dtype=logits.dtype))
        ctx.save_for_backward((probabilities * slope).to(weight.dtype) @ weight)
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (direction,) = ctx.saved_tensors
        return (direction * upstream[0][:, None]).to(direction.dtype), None, None, None, None


def _shares_starts(model: Any) -> bool:
    """Whether the common start of a batch can go through a KV cache: not where layers are checkpointed, which keep
    none, not where a layer keeps something else than keys and values, and not where layers are sharded, since all
    processes must run them equally often."""
    trunk = trunk_of(model)
    kinds = set(getattr(trunk.config, "layer_types", None) or ())
    apart = not (trunk.is_activation_checkpointing or is_fsdp_managed_module(trunk))
    return apart and kinds <= {"full_attention", "sliding_attention"}


@contextmanager
def _attention_for(trunk: Any, layout: Layout) -> Iterator[None]:
    """Plain attention instead of the fused kernel where it is faster."""
    config, usual = trunk.config, trunk.config._attn_implementation
    short = layout.sees.shape[2] <= PLAIN_ATTENTION_UP_TO and layout.tokens.device.type == "cpu"
    short = short and trunk.dtype == torch.bfloat16
    # A checkpointed layer runs again in the backward pass, after this has ended, and must then do the same.
    if short and usual == "sdpa" and not trunk.is_activation_checkpointing:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = usual


def trunk_of(model: Any) -> Any:
    """The part of a model that turns tokens into hidden states, whatever head stands on it."""
    return bare(model).get_decoder()


def bare(model: Any) -> Any:
    """The Hugging Face model itself, out of what peft wraps around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _parts(model: Any) -> tuple[Any, Any, LogitTransform]:
    """The trunk (hidden states), the output head and the logit transform of a causal language model."""
    causal = bare(model)
    config = causal.config
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    transform = LogitTransform(scale, getattr(config, "final_logit_softcapping", None))
    return causal.get_decoder(), causal.get_output_embeddings(), transform
