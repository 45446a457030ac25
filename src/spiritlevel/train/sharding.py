"""Fully sharded training (FSDP2): every process keeps a slice of each weight, its gradient and its optimiser state, and
has a layer whole only while it is computed.

Only where slices are cut and joined differs from plain data parallelism: losses, batches and AdamW do not know.
(Zhao et al. 2023, arXiv:2304.11277; PyTorch's `fully_shard`.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import LocalModel, trunk_of

Result = TypeVar("Result")


def sharding_is_asked_for(setting: bool) -> bool:
    """By `setting`, or by the configuration of `accelerate launch`, of which no more than that is read.

    Raises SpiritLevelError for what training can't do: FSDP1, DeepSpeed, Megatron-LM.
    """
    launched = parse_flag_from_env("ACCELERATE_USE_FSDP")
    other = [name for name in ("DEEPSPEED", "MEGATRON_LM") if parse_flag_from_env(f"ACCELERATE_USE_{name}")]
    if other or (launched and os.environ.get("FSDP_VERSION", "1") != "2"):
        raise SpiritLevelError(
            f"training does not run under {other[0] if other else 'FSDP1'}",
            where="the configuration of accelerate launch",
            remedy="Set `distributed_type: FSDP` with `fsdp_version: 2`, or leave sharding out.",
        )
    return setting or launched


class Sharded:
    """`model`, cut over all processes until `join`. Each must compute the same number of forward and backward passes.

    Cut it when adapters have been added. A process holds the whole model before and after, but not while it trains.
    """

    def __init__(self, model: LocalModel, processes: int) -> None:
        self.model, self.plain = model, model.model
        weights = list(self.plain.parameters())
        # The modules anew, with the same tensors: those of `plain` stay as they are, for `join`.
        network = deepcopy(self.plain, {id(tensor): tensor for tensor in (*weights, *self.plain.buffers())})
        mesh = init_device_mesh(model.device.type, (processes,))
        names = trunk_of(network)._no_split_modules or ()
        layers = [module for module in network.modules() if type(module).__name__ in names]
        self._root = _Root(network)
        for module in (*layers, self._root):
            fully_shard(module, mesh=mesh)
            # Losses are divided by the counts of the whole step: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        for weight in weights:
            weight.data = weight.data.new_empty(0)
        model.model = network

    def compute(self, function: Callable[..., Result], *given: Any) -> Result:
        """`function(*given)`, which computes with the model."""
        result: Result = self._root(function, *given)
        return result

    def join(self) -> None:
        """Give `model` its own modules back, with the whole trained weights."""
        for weight, part in zip(self.plain.parameters(), self.model.model.parameters(), strict=True):
            weight.data = joined(part.detach())
        self.model.model = self.plain


class _Root(nn.Module):
    """What FSDP takes for the model: in its forward pass the weights that belong to no layer (embeddings, head) are
    whole, which scoring reads without calling a module of theirs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[..., Result], *given: Any) -> Result:
        return function(*given)


def joined(part: Tensor) -> Tensor:
    """The whole tensor, of which this may be a slice; then all processes must call."""
    return part.full_tensor() if isinstance(part, DTensor) else part


def joined_state(state: Any, *, keep: bool) -> Any:
    """A state dictionary with its slices joined, on the CPU. All processes must call; those that don't `keep` it get
    empty tensors."""

    def join(part: DTensor) -> Tensor:
        whole = joined(part)
        return whole.cpu() if keep else whole.new_empty(0)

    return tree_map_only(DTensor, join, state)


def cut_like(whole: Tensor, current: Tensor) -> Tensor:
    """This process's part of a whole tensor, if `current` is such a part; else the tensor as it is."""
    if not isinstance(current, DTensor):
        return whole
    with torch.no_grad():
        return distribute_tensor(whole.to(current.device), current.device_mesh, current.placements, src_data_rank=None)
