"""LoRA adapters on a model, and what is written when training ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from spiritlevel.models import LocalModel
from spiritlevel.store import atomic_folder


@dataclass(frozen=True)
class LoraSettings:
    """W + (alpha/rank)·B·A on the named linear modules (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 16
    alpha: int = 32
    modules: str | tuple[str, ...] = "all-linear"


def add_lora(model: LocalModel, settings: LoraSettings, *, seed: int) -> LocalModel:
    """The model with a fresh adapter; B starts at zero, so its outputs are the base's exactly."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    modules = settings.modules if isinstance(settings.modules, str) else list(settings.modules)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=modules, task_type="CAUSAL_LM")
    if model.folder is not None:
        model.model.config._name_or_path = str(model.folder.resolve())
    wrapped = get_peft_model(model.model, config, autocast_adapter_dtype=False)
    # No folder: what is trained is no longer what its files say, and has no digest until it is saved.
    return LocalModel(wrapped, model.tokenizer, name=model.name)


def save_trained(model: LocalModel, folder: Path, *, form: Literal["adapter", "merged"]) -> None:
    """Write a PEFT adapter, or a whole Hugging Face directory that plain `transformers` loads.

    Merging adds (alpha/rank)·B·A in float32 and rounds once to the model's dtype. It changes `model`.
    """
    with atomic_folder(folder) as temporary:
        weights = model.model
        if form == "merged" and hasattr(weights, "merge_and_unload"):
            dtype = model.dtype
            weights = weights.float().merge_and_unload().to(dtype)
        weights.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
