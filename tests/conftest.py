"""What all tests share: tiny models, one thread, no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from spiritlevel.models import LocalModel
from tiny import build_llama, build_model, build_qwen2, save_model

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
settings.register_profile("spiritlevel", deadline=None, derandomize=True)
settings.load_profile("spiritlevel")


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """2 layers, width 32, 4 heads on 2 key-value heads, 200 tokens, random float64 weights."""
    return build_llama()


@pytest.fixture
def tiny_qwen2() -> Qwen2ForCausalLM:
    """The same with biases."""
    return build_qwen2()


@pytest.fixture
def tiny_model() -> LocalModel:
    """A tiny Llama with a byte-level tokenizer and a ChatML template."""
    return build_model()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """The same as a directory for `open_local`."""
    return save_model(tmp_path / "tiny")
