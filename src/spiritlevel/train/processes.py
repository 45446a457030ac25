"""Data parallelism without a wrapper: every process takes its share of the work, and the sums meet here.

Losses are divided by the counts of the whole step, which every process knows, since all see the same schedule. So the
gradient of the step is the plain sum of the shares' gradients, and each process makes the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import plan_batches
from spiritlevel.train.objective import Example

Item = TypeVar("Item")
Result = TypeVar("Result")

# Gradients travel in pieces of this many bytes: few messages, little memory beside them.
_PIECE_BYTES = 64 * 2**20


def micro_batches(
    batch: Sequence[Example], token_budget: int, accelerator: Accelerator
) -> Iterator[tuple[float, Sequence[Example]]]:
    """This process's share of a batch, every n-th example, in micro-batches, and how much each counts.

    All processes have equally many, since sharded weights are gathered by all together: who runs out early computes
    one example again that counts 0.
    """
    shares = [batch[rank :: accelerator.num_processes] for rank in range(accelerator.num_processes)]
    plans = [plan_batches([example.fork.length for example in share], token_budget) for share in shares]
    mine = shares[accelerator.process_index]
    for part in plans[accelerator.process_index]:
        yield 1.0, [mine[index] for index in part]
    for _ in range(max(map(len, plans)) - len(plans[accelerator.process_index])):
        yield 0.0, [min(batch, key=lambda example: example.fork.length)]


def shared_out(
    work: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], *, by_first: bool = False
) -> list[Result]:
    """work(items), one result an item: every process does its share and gets all results; or the first does it all. An
    error of one is raised by all, so that none waits for it."""
    if not distributed.is_initialized():
        return list(work(items))
    rank, count = distributed.get_rank(), distributed.get_world_size()
    shares = [range(first, len(items), count) for first in range(count)]
    if by_first:
        shares = [range(len(items)), *[range(0)] * (count - 1)]
    mine = [items[index] for index in shares[rank]]
    told: list[Sequence[Result] | SpiritLevelError] = [[]] * count
    try:
        found: Sequence[Result] | SpiritLevelError = list(work(mine)) if mine else []
    except SpiritLevelError as error:
        found = error
    distributed.all_gather_object(told, found)
    results: dict[int, Result] = {}
    for share, part in zip(shares, told, strict=True):
        if isinstance(part, SpiritLevelError):
            raise part
        results |= zip(share, part, strict=True)
    return [results[index] for index in range(len(items))]


def first_says(answer: bool) -> bool:
    """The first process's answer, in all of them."""
    told = [answer]
    if distributed.is_initialized():
        distributed.broadcast_object_list(told)
    return told[0]


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
    distributed.all_gather_object(all_metrics, metrics)
    names = dict.fromkeys(name for told in all_metrics if told for name in told)
    return {name: sum(told.get(name, 0.0) for told in all_metrics if told) for name in names}


def _sum(tensors: Sequence[Tensor]) -> None:
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
