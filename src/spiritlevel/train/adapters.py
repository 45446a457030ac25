"""LoRA adapters on a model, and what is written when training ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from spiritlevel.errors import SpiritLevelError, check_setting
from spiritlevel.models import LocalModel, RewardModel, model_folder, open_local, open_reward_model, trunk_of
from spiritlevel.store import atomic_folder, read_json

LoraVariant = Literal["lora", "rslora", "dora"]

Model = TypeVar("Model", bound=LocalModel)


@dataclass(frozen=True)
class LoraSettings:
    """W + s·B·A on the named linear modules, by default all but the head.

    variant: "lora", s = alpha/rank (Hu et al. 2021, arXiv:2106.09685); "rslora", s = alpha/√rank, so that a larger rank
    learns as fast as a small one (Kalajdzievski 2023, arXiv:2312.03732); "dora", LoRA's s, and each row of the sum
    scaled to a trained length (Liu et al. 2024, arXiv:2402.09353), which costs about as much again as the base layer.
    """

    rank: int = 16
    alpha: int = 32
    modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    variant: LoraVariant = "lora"

    def __post_init__(self) -> None:
        check_setting("rank", self.rank, self.rank >= 1, "at least 1")
        check_setting("alpha", self.alpha, self.alpha >= 1, "at least 1")
        check_setting("variant", self.variant, self.variant in get_args(LoraVariant), "lora, rslora or dora")


def open_base(spec: str) -> LocalModel:
    """The model that a training starts from and whose scores are the reference's.

    Raises SpiritLevelError if it is an adapter: a new one would take its place, not stand on it.
    """
    model = open_local(spec)
    _refuse_adapter(model)
    return model


def _refuse_adapter(model: LocalModel) -> None:
    if model.base is not None:
        raise SpiritLevelError(
            "is an adapter, and training starts from a whole model",
            where=model.name,
            remedy=f"Merge it first: spiritlevel model merge {model.name} --out MERGED",
        )


def add_lora(model: Model, settings: LoraSettings, *, seed: int) -> Model:
    """The model with a fresh adapter; B starts at zero, so its outputs are the base's exactly (DoRA: to rounding).

    Raises SpiritLevelError if the model is an adapter itself, or has no module of a name in `settings`.
    """
    from peft import get_peft_model

    _refuse_adapter(model)
    torch.manual_seed(seed)
    wrapped = get_peft_model(model.model, lora_config(model, settings), autocast_adapter_dtype=False)
    return model.carrying(wrapped)


def lora_config(model: LocalModel, settings: LoraSettings) -> Any:
    """The settings as peft has them."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=_modules(model, settings),
        use_rslora=settings.variant == "rslora",
        use_dora=settings.variant == "dora",
        task_type=model.task_type,
    )


def _modules(model: LocalModel, settings: LoraSettings) -> str | list[str]:
    """The names for peft, which would ignore one that is not there, and which scoring would ignore at the head."""
    if settings.modules == "all-linear":
        return settings.modules
    from transformers.pytorch_utils import Conv1D

    trunk = trunk_of(model.model)
    linear = [name for name, module in trunk.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    for wanted in settings.modules:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            choice = sorted({name.rpartition(".")[2] for name in linear})
            raise SpiritLevelError(
                f"there is no linear module {wanted!r} below its head",
                where=model.name,
                remedy=f"Choose all-linear, or from: {', '.join(choice)}.",
            )
    return list(settings.modules)


def save_trained(model: LocalModel, folder: Path, *, form: Literal["adapter", "merged"]) -> None:
    """Write a PEFT adapter, or a whole Hugging Face directory that plain `transformers` loads.

    Merging makes the weights in float32 and rounds once to the model's dtype. It changes `model`.
    """
    with atomic_folder(folder) as temporary:
        weights = model.model
        if form == "merged" and hasattr(weights, "merge_and_unload"):
            dtype = model.dtype
            weights = weights.float().merge_and_unload().to(dtype)
        weights.save_pretrained(temporary)
        model.save_settings(temporary)


def merge_adapter(spec: str, folder: Path) -> None:
    """Write the adapter that `spec` names and its base as one Hugging Face directory, in the base's stored precision;
    a reward model's with its head and scale.

    Raises SpiritLevelError if it is no adapter, or `folder` exists.
    """
    from transformers import AutoConfig

    if folder.exists():
        raise SpiritLevelError("exists already", where=str(folder), remedy="Remove it, or name another folder.")
    source = model_folder(spec)
    if not (source / "adapter_config.json").exists():
        raise SpiritLevelError("is a whole model: there is nothing to merge", where=spec)
    settings = read_json(source / "adapter_config.json")
    stored = AutoConfig.from_pretrained(model_folder(settings["base_model_name_or_path"])).dtype or torch.float32
    dtype = str(stored).removeprefix("torch.")
    if settings.get("task_type") == RewardModel.task_type:
        save_trained(open_reward_model(source, dtype=dtype), folder, form="merged")
    else:
        save_trained(open_local(spec, dtype=dtype), folder, form="merged")


@contextmanager
def fused_lora(model: Any) -> Iterator[None]:
    """While this lasts, peft's plain LoRA layers on linear ones add s·x·Aᵀ·Bᵀ to the base's output in one operation
    instead of three, forward and backward. The product is then also rounded once less."""
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
    (name,) = layer.active_adapters
    # An adapter that stands beside the policy's may leave this layer out.
    if layer.disable_adapters or layer.merged or args or kwargs or name not in layer.lora_A:
        return type(layer).forward(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
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
