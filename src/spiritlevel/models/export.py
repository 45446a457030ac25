"""A model directory as one GGUF file, which llama.cpp and what is built on it (Ollama, LM Studio) load.

Names, layouts and metadata are those of llama.cpp's converter; its own package `gguf` knows the names and writes the
file. Tensors go from safetensors into it one at a time, so that a large model needs little memory.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models.local import quiet_transformers
from spiritlevel.store import atomic_path, read_json

GgufType = Literal["f32", "f16", "bf16", "q8_0"]

# transformers' `model_type` of those whose layers llama.cpp computes as it does Llama's; it uses the same words.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
_F16_MAX = 65504.0
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def export_gguf(folder: Path, file: Path, *, kind: GgufType = "f16") -> None:
    """Write the model in `folder`, a Hugging Face directory with safetensors, as `file`.

    kind: of the weight matrices; vectors (norms, biases) stay in float32, as llama.cpp wants them. q8_0 is 8 bits with
    a scale for each 32 weights of a row; where rows don't divide into 32, a matrix is in f16.
    Raises SpiritLevelError if the model has no GGUF form here, `file` exists or the disk is full.
    """
    from gguf import GGUFWriter

    if file.exists():
        raise SpiritLevelError("exists already", where=str(file), remedy="Remove it, or name another file.")
    config, tokenizer = _read_source(folder)
    tensors = _tensors(folder, config)
    vocabulary = next(tensor.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    words = _words(folder, tokenizer, vocabulary)
    with atomic_path(file) as temporary:
        writer = GGUFWriter(temporary, config.model_type)
        try:
            writer.add_name(folder.resolve().name)
            _describe_model(writer, config, kind, vocabulary)
            _describe_tokenizer(writer, tokenizer, words)
            _write(writer, tensors, kind)
        finally:
            writer.close()


def _read_source(folder: Path) -> tuple[Any, Any]:
    """Its config and tokenizer. Raises SpiritLevelError if what it computes has no GGUF form here."""
    from transformers import AutoConfig, AutoTokenizer

    if (folder / "adapter_config.json").exists():
        raise SpiritLevelError(
            "is an adapter, and GGUF takes whole models",
            where=str(folder),
            remedy=f"Merge it first: spiritlevel model merge {folder} --out MERGED",
        )
    quiet_transformers()
    try:
        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise SpiritLevelError(f"the model can't be read: {reason}", where=str(folder)) from None
    if fault := _unsupported(config):
        raise SpiritLevelError(
            f"{fault} has no GGUF form here",
            where=str(folder / "config.json"),
            remedy=f"Supported are plain {', '.join(ARCHITECTURES)}; llama.cpp's convert_hf_to_gguf.py knows more.",
        )
    return config, tokenizer


def _unsupported(config: Any) -> str:
    """What about the architecture llama.cpp would compute otherwise, if anything."""
    if config.model_type not in ARCHITECTURES:
        return f"a model of type {config.model_type!r}"
    if config.hidden_act != "silu":
        return f"the activation {config.hidden_act!r}"
    if getattr(config, "quantization_config", None) is not None:
        return "a quantised model"
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= {"full_attention"}:
        return f"attention of the kinds {', '.join(sorted(kinds))}"
    scaling = config.rope_parameters["rope_type"]
    if scaling != "default" and (config.model_type, scaling) != ("llama", "llama3"):
        return f"rope scaling {scaling!r} in a model of type {config.model_type!r}"
    return ""


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _describe_model(writer: Any, config: Any, kind: GgufType, vocabulary: int) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    writer.add_type("model")
    writer.add_file_type(LlamaFileType[_FILE_TYPES[kind]])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_width(config))
    writer.add_value_length(_head_width(config))
    writer.add_rope_dimension_count(_head_width(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


# --- words --------------------------------------------------------------------------------------------

# How text is cut before merging, by the steps of a tokenizer.json, in llama.cpp's words.
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (f"{_LETTERS}\\p{{N}}{{1,3}}{_OTHERS}", "bytes"): "llama-bpe",
    (f"{_LETTERS}\\p{{N}}{_OTHERS}", "bytes"): "qwen2",
}


@dataclass(frozen=True)
class _Words:
    """A byte-level BPE: the name of its way to cut text, and for each id the token and its type (`gguf.TokenType`)."""

    cut: str
    tokens: list[str]
    types: Sequence[int]
    merges: list[str]


def _words(folder: Path, tokenizer: Any, size: int) -> _Words:
    from gguf import TokenType

    core = json.loads(tokenizer.backend_tokenizer.to_str())
    cut = _CUTS.get(_cutting(core["pre_tokenizer"]))
    if core["model"]["type"] != "BPE" or cut is None or (core["normalizer"] or {}).get("type") not in (None, "NFC"):
        raise SpiritLevelError(
            "its way of cutting text into tokens has no GGUF form here",
            where=str(folder),
            remedy="Supported are the byte-level BPEs of GPT-2, SmolLM, Llama 3 and Qwen 2.",
        )
    added = tokenizer.added_tokens_decoder
    by_id = {number: token for token, number in core["model"]["vocab"].items()}
    by_id |= {number: token.content for number, token in added.items()}
    if max(by_id) >= size:
        raise SpiritLevelError(f"the tokenizer has {max(by_id) + 1} tokens, the model {size}", where=str(folder))
    types = [TokenType.NORMAL if number in by_id else TokenType.UNUSED for number in range(size)]
    for number, token in added.items():
        types[number] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    return _Words(cut, tokens, types, [" ".join(pair) for pair in core["model"]["merges"]])


def _cutting(step: dict[str, Any] | None) -> tuple[str, ...]:
    """The steps of a pre-tokenizer as in `_CUTS`; of one that is not known, anything else."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            return tuple(name for each in steps for name in _cutting(each))
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return ("Digits",)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": by_itself}:
            return ("ByteLevel",) if by_itself else ("bytes",)
    return ("unknown",)


def _describe_tokenizer(writer: Any, tokenizer: Any, words: _Words) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.cut)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    for role in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    something = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(something[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(something[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


# --- weights ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """A tensor under its name in GGUF; `read` gives it in float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def form(self, kind: GgufType) -> GgufType:
        if len(self.shape) == 1:
            return "f32"
        return "f16" if kind == "q8_0" and self.shape[-1] % 32 else kind


def _tensors(folder: Path, config: Any) -> list[_Tensor]:
    """All tensors of the model. Raises SpiritLevelError where llama.cpp knows one not, or one is missing."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    missing = _expected(config)
    found = _rope_factors(config)
    for file in _weight_files(folder):
        for source, shape in _shapes(file).items():
            name = names.get_name(source, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise SpiritLevelError(f"llama.cpp's {config.model_type} has no tensor {source}", where=str(file))
            if name != "output.weight" or not config.tie_word_embeddings:
                found.append(_Tensor(name, shape, partial(_read, file, source, _rotated_heads(name, config))))
            missing.discard(source)
    if missing:
        raise SpiritLevelError(f"the weights lack {min(missing)}", where=str(folder))
    return found


def _expected(config: Any) -> set[str]:
    """The names of all weights that such a model must have in its files."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        names = set(AutoModelForCausalLM.from_config(config).state_dict())  # type: ignore[no-untyped-call]
    return names - {"lm_head.weight"} if config.tie_word_embeddings else names


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return [folder / name for name in sorted(names)]


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except FileNotFoundError:
        problem = "there is no such file"
    except SafetensorError as error:
        problem = f"the weights can't be read: {error}"
    raise SpiritLevelError(
        problem,
        where=str(file),
        remedy="Export a directory that holds all weights as safetensors.",
    )


def _rotated_heads(name: str, config: Any) -> int:
    """How many heads of a tensor's rows llama.cpp rotates in pairs of neighbours, which it does in Llama alone."""
    if config.model_type != "llama":
        return 0
    part = name.split(".")[-2]
    return int({"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part, 0))


def _read(file: Path, source: str, rotated_heads: int) -> Tensor:
    with safe_open(file, framework="pt") as weights:
        tensor: Tensor = weights.get_tensor(source).float()
    if rotated_heads:
        # transformers rotates row i of a head with row i + width/2: these become neighbours.
        halves = tensor.view(rotated_heads, 2, -1, *tensor.shape[1:])
        tensor = halves.transpose(1, 2).reshape(tensor.shape)
    return tensor.contiguous()


def _rope_factors(config: Any) -> list[_Tensor]:
    """By what llama.cpp is to divide each frequency of the rotation: Llama 3's way to longer contexts."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if config.rope_parameters["rope_type"] == "default":
        return []
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = _head_width(config)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    factors = (plain / scaled).float()
    return [_Tensor("rope_freqs.weight", tuple(factors.shape), lambda: factors)]


def _write(writer: Any, tensors: list[_Tensor], kind: GgufType) -> None:
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape, quantize

    types = [GGMLQuantizationType[tensor.form(kind).upper()] for tensor in tensors]
    for tensor, code in zip(tensors, types, strict=True):
        shape = quant_shape_to_byte_shape(tensor.shape, code)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), prod(shape), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, code in zip(tensors, types, strict=True):
        values = tensor.read()
        if code == GGMLQuantizationType.F16 and float(values.abs().max()) > _F16_MAX:
            raise SpiritLevelError(f"{tensor.name} has values beyond f16", remedy="Choose bf16 or f32.")
        with _full_disk_named():
            writer.write_tensor_data(quantize(values.numpy(), code))


@contextmanager
def _full_disk_named() -> Iterator[None]:
    """numpy says only that it wrote less than it should have, which is what a full disk does."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
