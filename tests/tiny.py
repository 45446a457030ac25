"""Tiny random models of real parts: Llama and Qwen2 from their configs, a byte-level chat tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from spiritlevel.models import LocalModel

Model = TypeVar("Model", bound=torch.nn.Module)

VOCABULARY = 200
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

# The template writes the opening token itself, and so does the tokenizer: who joins them carelessly gets two.
OPENING, START, END = "<|opening|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_MERGES = ["h e", "l l", "Ġ t", "Ġt he", "he ll", "a s", "s i", "u s", "e r", "us er", "i n", "Ġ a", "o n"]


def _norm(self: Any, hidden: Tensor) -> Tensor:
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * normed.to(hidden.dtype)


# transformers computes norms in float32 even in a float64 model: nothing below 1e-7 could be told apart.
LlamaRMSNorm.forward = Qwen2RMSNorm.forward = _norm


def randomise(model: Model, *, seed: int, dtype: torch.dtype = torch.float64) -> Model:
    """Every weight drawn anew and large enough that attention, biases and norms all matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (1 + 0.1 * draw if parameter.ndim == 1 else 0.3 * draw).to(dtype)
    return model.to(dtype).eval()


def build_llama(*, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> LlamaForCausalLM:
    return randomise(LlamaForCausalLM(LlamaConfig(**SIZES | changes)), seed=seed, dtype=dtype)


def build_qwen2(*, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Qwen2ForCausalLM:
    return randomise(Qwen2ForCausalLM(Qwen2Config(**SIZES | changes)), seed=seed, dtype=dtype)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: the 256 bytes, a few merges, and ChatML with an opening token."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(left, right) for left, right in (merge.split() for merge in _MERGES)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *(a + b for a, b in pairs)])}
    core = Tokenizer(BPE(vocab=vocabulary, merges=pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in (OPENING, START, END)])
    core.post_processor = processors.TemplateProcessing(
        single=f"{OPENING} $A", special_tokens=[(OPENING, core.token_to_id(OPENING))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=OPENING, eos_token=END, additional_special_tokens=[START]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_model(
    *, seed: int = 0, dtype: torch.dtype = torch.float64, folder: Path | None = None, **changes: Any
) -> LocalModel:
    """A tiny Llama that can chat (nonsense)."""
    tokenizer = build_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id} | changes
    network = build_llama(seed=seed, dtype=dtype, **sizes)
    return LocalModel(network, tokenizer, name="tiny", folder=folder)


def build_gpt2(*, context: int) -> LocalModel:
    """A tiny model with learned positions, which can take no more tokens than it has of them."""
    tokenizer = build_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=context)
    return LocalModel(randomise(GPT2LMHeadModel(config), seed=0), tokenizer, name="gpt2")


def save_model(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Path:
    """The same as a directory that `open_local` and plain transformers load."""
    model = build_model(seed=seed, dtype=dtype, **changes)
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder
