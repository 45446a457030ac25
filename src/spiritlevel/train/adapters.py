"""LoRA adapters on a model, and what is written when training ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from spiritlevel.errors import check_setting
from spiritlevel.models import LocalModel
from spiritlevel.store import atomic_folder

Model = TypeVar("Model", bound=LocalModel)


@dataclass(frozen=True)
class LoraSettings:
    """W + (alpha/rank)·B·A on the named linear modules (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 16
    alpha: int = 32
    modules: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        check_setting("rank", self.rank, self.rank >= 1, "at least 1")
        check_setting("alpha", self.alpha, self.alpha >= 1, "at least 1")


def add_lora(model: Model, settings: LoraSettings, *, seed: int) -> Model:
    """The model with a fresh adapter; B starts at zero, so its outputs are the base's exactly."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    if model.folder is not None:
        model.model.config._name_or_path = str(model.folder.resolve())
    wrapped = get_peft_model(model.model, lora_config(model, settings), autocast_adapter_dtype=False)
    return model.carrying(wrapped)


def lora_config(model: LocalModel, settings: LoraSettings) -> Any:
    """The settings as peft has them."""
    from peft import LoraConfig

    modules = settings.modules if isinstance(settings.modules, str) else list(settings.modules)
    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=modules, task_type=model.task_type)


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
        model.save_settings(temporary)


@contextmanager
def fused_lora(model: Any) -> Iterator[None]:
    """While this lasts, peft's plain LoRA layers on linear ones add (alpha/rank)·x·Aᵀ·Bᵀ to the base's output in one
    operation instead of three, forward and backward. The product is then also rounded once less."""
    from peft.tuners.lora import Linear

    fused = []
    for layer in model.modules():
        if isinstance(layer, Linear) and _is_plain(layer):
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
            fused.append(layer)
    try:
        yield
    finally:
        for layer in fused:
            del layer.forward


def _is_plain(layer: Any) -> bool:
    """One adapter of the base's dtype, W + s·B·A and nothing else: no dropout, no variant such as DoRA."""
    if type(layer.base_layer) is not torch.nn.Linear or layer.lora_variant or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    if name not in layer.lora_A or not isinstance(layer.lora_dropout[name], torch.nn.Identity):
        return False
    return bool(layer.lora_A[name].weight.dtype == layer.base_layer.weight.dtype)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
    (name,) = layer.active_adapters
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _AddLowRank.apply(layer.base_layer(x), x, a, b, layer.scaling[name])  # type: ignore[no-untyped-call,no-any-return]


class _AddLowRank(torch.autograd.Function):
    """out += scale · x·Aᵀ·Bᵀ, in place. x: [..., in], A: [rank, in], B: [out, rank]."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        out.view(-1, out.shape[-1]).addmm_(low, b.T, alpha=scale)
        ctx.mark_dirty(out)
        ctx.save_for_backward(rows, low, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        rows, low, a, b = ctx.saved_tensors
        gradient = upstream[0].reshape(-1, b.shape[0])
        back = (gradient @ b).mul_(ctx.scale)
        return upstream[0], (back @ a).view(ctx.shape), back.T @ rows, (gradient.T @ low).mul_(ctx.scale), None
