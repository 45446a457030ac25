"""A GGUF file is the model it was made from: transformers reads the same weights, words and template back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tokenizers import Regex, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_CUT

from small_disk import fill, small_disk
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import PACKAGED, export_gguf, model_folder, open_local
from spiritlevel.train import LoraSettings, add_lora, save_trained
from tiny import SIZES, build_llama, build_qwen2, build_tokenizer, randomise, save_model

TEXTS = [
    "hello the one",
    "  two  spaces\n\n\tand a tab, it's 1234 + 5",
    "Grüße, 你好, नमस्ते, 🙂👩‍👩‍👧",
    "<|im_start|>user\nhello<|im_end|>\n",
    "é and e\u0301; \u200b\ufeff",
]
IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3, 2]])


def build_qwen3(**changes: Any) -> Qwen3ForCausalLM:
    # transformers reads no head width for Qwen3 from GGUF and takes 128.
    return randomise(Qwen3ForCausalLM(Qwen3Config(**SIZES | {"head_dim": 128} | changes)), seed=0)


BUILD = {"llama": build_llama, "qwen2": build_qwen2, "qwen3": build_qwen3}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    "llama-wide-heads": {"head_dim": 16},
    "qwen2": {},
    "qwen2-tied": {"tie_word_embeddings": True},
    "qwen3": {},
}


def save(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    tokenizer = build_tokenizer()
    # More rows than words, as many models have; for Qwen2 transformers adds a word by itself.
    given = {"vocab_size": 288, "eos_token_id": tokenizer.eos_token_id} | changes
    BUILD[name](**given).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(folder: Path, **settings: Any) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings)(input_ids=IDS).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_logits_are_those_of_the_source(variant: str, tmp_path: Path) -> None:
    source = save(tmp_path / "source", variant.partition("-")[0], **VARIANTS[variant])
    export_gguf(source, tmp_path / "model.gguf", kind="f32")
    # That Llama has biases, transformers does not see in a GGUF file.
    config = {"config": AutoConfig.from_pretrained(source)} if "biases" in variant else {}
    expected, found = logits(source), logits(tmp_path, gguf_file="model.gguf", **config)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# How far a weight may move, as a share of the largest of its row: half a step of each format (q8_0's is in f16).
STEPS = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 254 + 2**-11}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_weight_moves_by_at_most_half_a_step_of_the_format(kind: Any, name: str, tmp_path: Path) -> None:
    source = save(tmp_path / "source", name)
    export_gguf(source, tmp_path / "model.gguf", kind=kind)
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    for key, weights in expected.items():
        if weights.ndim == 1:
            assert torch.equal(found[key], weights), key
        else:
            largest = weights.abs().amax(dim=-1, keepdim=True)
            assert bool(((found[key] - weights).abs() <= STEPS[kind] * largest).all()), key
            assert not torch.equal(found[key], weights), key


def test_matrices_whose_rows_do_not_divide_stay_in_f16(tmp_path: Path) -> None:
    export_gguf(save(tmp_path / "source", "llama"), tmp_path / "model.gguf", kind="q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"  # rows of 48
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"


def test_bfloat16_weights_are_kept_exactly_in_several_files(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama", torch.bfloat16)
    whole = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: whole[name] for name in held}, source / part, metadata={"format": "pt"})
    places = {name: part for part, held in parts.items() for name in held}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    export_gguf(source, tmp_path / "model.gguf", kind="bf16")
    assert torch.equal(logits(tmp_path, gguf_file="model.gguf"), logits(source))

    (source / "b.safetensors").unlink()
    with pytest.raises(SpiritLevelError, match="there is no such file") as told:
        export_gguf(source, tmp_path / "again.gguf")
    assert told.value.where == str(source / "b.safetensors")


# --- words --------------------------------------------------------------------------------------------


def same_words(source: Path, folder: Path, file: str) -> None:
    expected = AutoTokenizer.from_pretrained(source)
    found = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=file)
    for text in TEXTS:
        assert found(text)["input_ids"] == expected(text)["input_ids"], text
        ids = expected(text, add_special_tokens=False)["input_ids"]
        assert found.decode(ids) == expected.decode(ids)
    for role in ("bos_token_id", "eos_token_id", "chat_template"):
        assert getattr(found, role) == getattr(expected, role), role


def cut_like(name: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(QWEN2_CUT), behavior="isolated")
    steps = {
        "qwen2": [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    }[name]
    return pre_tokenizers.Sequence(steps)


@pytest.mark.parametrize("cut", ["gpt-2", "qwen2"])
@pytest.mark.parametrize("opened", [True, False])
def test_its_words_are_those_of_the_source(cut: str, opened: bool, tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = cut_like(cut)
    if not opened:
        tokenizer.backend_tokenizer.post_processor = None
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(source)
    export_gguf(source, tmp_path / "model.gguf")
    same_words(source, tmp_path, "model.gguf")


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "smollm"])
def test_the_way_text_is_cut_has_llama_cpps_name(name: str, tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = cut_like(name)
    tokenizer.save_pretrained(source)
    export_gguf(source, tmp_path / "model.gguf")
    field = GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.pre"]
    assert field.contents() == name


def test_the_packaged_model_survives(tmp_path: Path) -> None:
    source = model_folder(PACKAGED)
    export_gguf(source, tmp_path / "model.gguf", kind="bf16")
    same_words(source, tmp_path, "model.gguf")
    config = AutoConfig.from_pretrained(source)
    assert torch.equal(logits(tmp_path, gguf_file="model.gguf", config=config), logits(source))


# --- what can't be exported ---------------------------------------------------------------------------

SCALED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_llama_3_frequencies_are_divided_by_factors(tmp_path: Path) -> None:
    scaled = SCALED | {"original_max_position_embeddings": 64}
    source = save(tmp_path / "source", "llama", head_dim=64, rope_parameters=scaled, max_position_embeddings=512)
    export_gguf(source, tmp_path / "model.gguf", kind="f32")
    (factors,) = (t.data for t in GGUFReader(tmp_path / "model.gguf").tensors if t.name == "rope_freqs.weight")
    used = AutoModelForCausalLM.from_pretrained(source).model.rotary_emb.inv_freq
    plain = 1e4 ** -(torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(plain / torch.tensor(factors), used)
    assert factors[0] == 1.0 and factors[-1] == pytest.approx(8.0)


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope scaling 'yarn'"),
    "activation": ({"hidden_act": "gelu"}, "activation 'gelu'"),
    "quantised": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
}


@pytest.mark.parametrize("which", UNSUPPORTED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(which: str, tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    changes, problem = UNSUPPORTED[which]
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    refused(source, tmp_path, problem)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    Gemma2Config(**SIZES).save_pretrained(source)
    refused(source, tmp_path, "'gemma2'", "llama, qwen2, qwen3")


def test_sliding_attention_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "qwen2")
    config = json.loads((source / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    config.pop("layer_types")
    (source / "config.json").write_text(json.dumps(config))
    refused(source, tmp_path, "sliding_attention")


def test_an_unknown_way_to_cut_text_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save_pretrained(source)
    refused(source, tmp_path, "cutting text", "GPT-2, SmolLM, Llama 3 and Qwen 2")


def test_a_tensor_that_is_missing_or_unknown_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    weights = load_file(source / "model.safetensors")
    extra = weights | {"model.layers.0.self_attn.sinks": torch.ones(4)}
    save_file(extra, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, tmp_path, "self_attn.sinks")
    for name in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        others = {key: weight for key, weight in weights.items() if key != name}
        save_file(others, source / "model.safetensors", metadata={"format": "pt"})
        refused(source, tmp_path, f"lack {name}")
    (source / "model.safetensors").write_bytes(b"short")
    refused(source, tmp_path, "can't be read")


def test_more_words_than_rows_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama", vocab_size=len(build_tokenizer()) - 1)
    refused(source, tmp_path, "tokens, the model 271")


def test_an_adapter_is_to_be_merged_first(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", dtype=torch.float32)
    student = add_lora(open_local(str(base)), LoraSettings(2, 4), seed=0)
    save_trained(student, tmp_path / "adapter", form="adapter")
    refused(tmp_path / "adapter", tmp_path, "is an adapter", "spiritlevel model merge")


def test_a_value_beyond_f16_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 7e4
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    refused(source, tmp_path, "output.weight has values beyond f16", "bf16")
    export_gguf(source, tmp_path / "model.gguf", kind="bf16")


def refused(source: Path, folder: Path, problem: str, remedy: str = "") -> None:
    with pytest.raises(SpiritLevelError) as told:
        export_gguf(source, folder / "refused.gguf")
    assert problem in told.value.problem
    assert remedy in told.value.remedy
    assert not [path for path in folder.iterdir() if "refused" in path.name]


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("old")
    with pytest.raises(SpiritLevelError, match="exists already"):
        export_gguf(save(tmp_path / "source", "llama"), tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "old"


@pytest.mark.parametrize("room", [4_000, 60_000])
def test_a_full_disk_is_told_and_leaves_nothing(room: int, tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama")
    with small_disk(tmp_path / "disk") as disk:
        fill(disk, but=room)
        with pytest.raises(SpiritLevelError, match="disk is full"):
            export_gguf(source, disk / "model.gguf", kind="f32")
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_the_config_of_llama_has_the_same_meaning(tmp_path: Path) -> None:
    source = save(tmp_path / "source", "llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    export_gguf(source, tmp_path / "model.gguf")
    config = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").config
    expected = LlamaConfig.from_pretrained(source)
    for name in ("max_position_embeddings", "rms_norm_eps", "rope_parameters", "vocab_size", "eos_token_id"):
        assert getattr(config, name) == pytest.approx(getattr(expected, name)), name
