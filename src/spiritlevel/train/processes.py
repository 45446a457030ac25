"""Data parallelism without a wrapper: every process takes its share of a batch, and the sums meet here.

Losses are divided by the counts of the whole step, which every process knows, since all see the same schedule. So the
gradient of the step is the plain sum of the shares' gradients, and each process makes the same update.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

Item = TypeVar("Item")

# Gradients travel in pieces of this many bytes: few messages, little memory beside them.
_PIECE_BYTES = 64 * 2**20


def share(batch: Sequence[Item], accelerator: Accelerator) -> Sequence[Item]:
    """This process's part of a batch: every n-th item."""
    return batch[accelerator.process_index :: accelerator.num_processes]


def sum_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace every gradient by its sum over all processes; one that a process lacks counts as zero."""
    if accelerator.num_processes == 1:
        return
    piece: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if piece and (sum(g.nbytes for g in piece) >= _PIECE_BYTES or piece[0].dtype != parameter.grad.dtype):
            _sum(piece)
            piece = []
        piece.append(parameter.grad)
    _sum(piece)


def sum_metrics(metrics: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The sum of each metric over all processes; a process without examples has none to add."""
    if accelerator.num_processes == 1:
        return metrics
    all_metrics: list[dict[str, float] | None] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(all_metrics, metrics)
    names = dict.fromkeys(name for told in all_metrics if told for name in told)
    return {name: sum(told.get(name, 0.0) for told in all_metrics if told) for name in names}


def _sum(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
