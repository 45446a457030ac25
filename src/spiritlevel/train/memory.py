"""What memory a training step will take, found without taking it, and checkpointed layers where there is too little.

The heaviest micro-batch runs forward and backward on fake tensors, which have shapes and storages but no data. So the
estimate follows the architecture, the attention kernel, the adapter, the layout and the head's chunks as they are.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import Fork, ForkScores, LocalModel, plan_batches

Checkpointing = Literal["auto", "on", "off"]

# Of the free memory, what a step may be estimated to take: others take some, too.
SHARE = 0.8
# What a process takes beside its tensors (fragments of the heap, kernels and their buffers), as measured on a CPU with
# SmolLM2-135M: a share of the tensors' bytes, and bytes.
_BESIDE_SHARE, _BESIDE = 0.2, 100_000_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a step takes beside what stands when training starts (weights, and the optimiser's masters).

    activations: the peak of one micro-batch, forward and backward. gradients: kept over all micro-batches. moments:
    AdamW's two. stepping: what the update needs for a moment, when the activations are gone.
    """

    activations: int
    gradients: int
    moments: int
    stepping: int

    @property
    def tensors(self) -> int:
        return self.gradients + self.moments + max(self.activations, self.stepping)

    @property
    def total(self) -> int:
        """With what is beside tensors; measured peaks of steps without checkpointing were 0.8 to 1.25 times this."""
        return round((1 + _BESIDE_SHARE) * self.tensors) + _BESIDE


def estimate_step(model: LocalModel, forks: Sequence[Fork]) -> StepMemory:
    """For a micro-batch of these forks, with the model as it is: its mode, adapter, trained weights and checkpointing.

    Computes nothing and changes nothing. Raises torch's errors for a model whose shapes depend on its values.
    """
    trained = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    masters = sum(weight.numel() * max(4, weight.element_size()) for weight in trained)
    copies = sum(weight.numel() * 4 for weight in trained if weight.element_size() < 4)
    drop = [weight.register_post_accumulate_grad_hook(_drop_gradient) for weight in trained]
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    standing = [fake.from_tensor(tensor) for tensor in (*model.model.parameters(), *model.model.buffers())]
    try:
        with fake, _Allocated(standing) as allocated:
            scores = model.score(forks)
            torch.autograd.backward((scores.logprobs if isinstance(scores, ForkScores) else scores).sum())
    finally:
        for hook in drop:
            hook.remove()
    return StepMemory(
        activations=allocated.peak,
        gradients=sum(weight.nbytes for weight in trained),
        moments=2 * masters,
        stepping=copies + (masters if model.device.type == "cuda" else 0),  # there all weights are updated at once
    )


def _drop_gradient(weight: Tensor) -> None:
    weight.grad = None


class _Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all fake storages that operations make, as they come and go, beside the standing ones."""

    def __init__(self, standing: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive = {tensor.untyped_storage()._cdata for tensor in standing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            self._alive.add(storage._cdata)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._alive.remove(key)
        self.now -= size


def heaviest_micro_batch(batches: Iterable[Sequence[Fork]], token_budget: int) -> list[Fork]:
    """Of all micro-batches that these batches are cut into, the one of most tokens, padding included; [] if none."""
    parts = (
        [batch[index] for index in part]
        for batch in batches
        for part in plan_batches([fork.length for fork in batch], token_budget)
    )
    return max(parts, key=lambda forks: len(forks) * max(fork.length for fork in forks), default=[])


@contextmanager
def gradient_checkpointing(
    model: LocalModel, setting: Checkpointing, batches: Iterable[Sequence[Fork]], token_budget: int
) -> Iterator[None]:
    """While this lasts, the layers' activations are computed again in the backward pass instead of kept, if `setting`
    says so: "auto" does where the heaviest micro-batch of the batches to come would not fit. Results are the same to
    rounding; a step takes about a third longer.
    """
    if settled(model, setting, batches, token_budget) == "off":
        yield
        return
    model.model.activation_checkpointing_enable()
    # A layer is checkpointed only in training mode, its modules need not be: a policy learns without dropout.
    evaluating = [module for module in model.model.modules() if _is_checkpointed(module) and not module.training]
    for module in evaluating:
        module.training = True
    try:
        yield
    finally:
        for module in evaluating:
            module.training = False
        model.model.activation_checkpointing_disable()
        model.model.disable_input_require_grads()


def settled(
    model: LocalModel, setting: Checkpointing, batches: Iterable[Sequence[Fork]], token_budget: int
) -> Literal["on", "off"]:
    """What `setting` comes to for these batches; "auto" takes seconds to find it."""
    if setting == "on" and not model.model.supports_gradient_checkpointing:
        raise SpiritLevelError(
            "this architecture has no gradient checkpointing",
            where=model.name,
            remedy="Leave it off, and lower the token budget if memory is short.",
        )
    return "on" if setting == "on" or (setting == "auto" and _is_needed(model, batches, token_budget)) else "off"


def _is_checkpointed(module: torch.nn.Module) -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer)


def _is_needed(model: LocalModel, batches: Iterable[Sequence[Fork]], token_budget: int) -> bool:
    forks, free = heaviest_micro_batch(batches, token_budget), free_memory(model.device)
    if not forks or free is None or not model.model.supports_gradient_checkpointing:
        return False
    try:
        takes = estimate_step(model, forks).total
    except Exception as error:  # it is no more than an estimate: the training itself would tell what is wrong
        _log.warning("gradient checkpointing on: the memory of a step can't be estimated (%s)", type(error).__name__)
        return True
    needed = takes > SHARE * free
    _log.log(
        logging.WARNING if needed else logging.INFO,
        "gradient checkpointing %s: a step without it takes about %.1f GB (%d tokens at once), %.1f GB are free",
        "on" if needed else "off", takes / 1e9, sum(fork.length for fork in forks), free / 1e9,
    )  # fmt: skip
    return needed


# --- what is free -------------------------------------------------------------------------------------


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that this process can still take on `device`; None if the system does not say.

    On a CPU: what the kernel calls available, or less where a control group (a container) sets a limit.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min(_rooms(root), default=None)


def _rooms(root: Path) -> Iterator[int]:
    available = _value(root / "proc/meminfo", "MemAvailable:")
    if available is not None:
        yield available * 1024
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, place = line.split(":", 2)
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        if controllers in ("", "memory"):
            inner = top / place.strip("/")
            for folder in (inner, *inner.parents[: len(inner.relative_to(top).parts)]):
                yield from _room(folder, *(_VERSION_1 if controllers else _VERSION_2))


# The files of a control group's limit and use, and the part of its use that the kernel gives back when asked.
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def _room(folder: Path, limit: str, use: str, cache: str) -> Iterator[int]:
    most, taken = (" ".join(_lines(folder / name)) for name in (limit, use))
    if most.isdecimal() and taken.isdecimal():
        yield int(most) - int(taken) + (_value(folder / "memory.stat", cache) or 0)


def _value(path: Path, name: str) -> int | None:
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(f"{name} ")), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
