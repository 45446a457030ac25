"""One optimiser step, the same for all methods: micro-batches, backward pass, clipping, update, metrics."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator, PartialState

from spiritlevel.errors import SpiritLevelError, check_setting
from spiritlevel.models import LocalModel
from spiritlevel.store import write_jsonl
from spiritlevel.train.memory import Checkpointing
from spiritlevel.train.objective import Objective
from spiritlevel.train.optimizer import MasterAdamW, Schedule, learning_rate
from spiritlevel.train.processes import micro_batches, sum_gradients, sum_metrics
from spiritlevel.train.sharding import Sharded, sharding_is_asked_for

StepMetrics = dict[str, float]


@dataclass(frozen=True)
class TrainConfig:
    """batch_size: examples per optimiser step, cut into micro-batches of at most `token_budget` tokens.

    warmup: share of all steps. save_seconds: time between checkpoints. max_length: longest row in tokens.
    checkpointing: whether layers compute their activations twice to save memory; "auto" where they would not fit.
    shard: cut weights, gradients and the optimiser's state over all processes (FSDP2).
    """

    learning_rate: float
    epochs: int
    batch_size: int = 8
    warmup: float = 0.1
    schedule: Schedule = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    token_budget: int = 2048
    max_length: int = 2048
    seed: int = 0
    save_seconds: float = 30.0
    checkpointing: Checkpointing = "auto"
    shard: bool = False

    def __post_init__(self) -> None:
        check_setting("learning_rate", self.learning_rate, 0 < self.learning_rate < inf, "a number above 0")
        check_setting("epochs", self.epochs, self.epochs >= 1, "at least 1")
        check_setting("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check_setting("warmup", self.warmup, 0 <= self.warmup <= 1, "a share from 0 to 1")
        check_setting("weight_decay", self.weight_decay, 0 <= self.weight_decay < inf, "0 or more")
        check_setting("max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "a number above 0")
        known = self.checkpointing in get_args(Checkpointing)
        check_setting("checkpointing", self.checkpointing, known, "auto, on or off")


class Stepper:
    """Trains `model` in place, one step a call, until `finish`. Dropout is off: policy and reference differ by what was
    learnt. steps: how many there will be, for the learning rate's schedule."""

    def __init__(self, model: LocalModel, objective: Objective, config: TrainConfig, steps: int) -> None:
        shard = sharding_is_asked_for(config.shard)
        self.accelerator = Accelerator(cpu=model.device.type == "cpu")
        self.model, self.objective, self.config, self.steps = model, objective, config, steps
        if shard and self.accelerator.num_processes == 1:
            raise SpiritLevelError(
                "there is one process, and nothing to shard over",
                remedy="Train on several (--processes N), or leave sharding out.",
            )
        self.sharded = Sharded(model, self.accelerator.num_processes) if shard else None
        self.optimizer = MasterAdamW(
            model.model.parameters(), weight_decay=config.weight_decay, eps=objective.adam_epsilon
        )

    def step(self, number: int, batch: Sequence[Any]) -> StepMetrics:
        """Step `number`, from 0: the gradient of the objective over the whole batch, clipped, and an update."""
        started = time.monotonic()
        config = self.config
        metrics = self._over(batch, learn=True)
        rate = learning_rate(
            number, self.steps, peak=config.learning_rate, warmup=config.warmup, schedule=config.schedule
        )
        if self.sharded is None:
            sum_gradients(self.optimizer.parameters, self.accelerator)
        norm = self.optimizer.step(rate, config.max_grad_norm)
        seconds = time.monotonic() - started
        return {
            "step": number + 1,
            "steps": self.steps,
            **metrics,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": sum(example.fork.length for example in batch) / seconds,
            "memory_gb": peak_memory_gb(),
            "seconds": seconds,
        }

    def validate(self, examples: Sequence[Any]) -> StepMetrics:
        """The loss and the metrics on examples that are not learnt from, as one batch."""
        return {f"validation_{name}": value for name, value in self._over(examples, learn=False).items()}

    def finish(self) -> None:
        """The weights are whole again."""
        if self.sharded is not None:
            self.sharded.join()

    def _over(self, batch: Sequence[Any], *, learn: bool) -> dict[str, float]:
        """The loss and the metrics of a batch that all processes share; if it is learnt from, this process's share of
        the gradient too."""
        window = self._compute(self.objective.window, self.model, batch)
        sums: dict[str, torch.Tensor] = {}
        for counts, micro in micro_batches(batch, self.config.token_budget, self.accelerator):
            with torch.set_grad_enabled(learn):
                scores = self._compute(self.model.score, [example.fork for example in micro])
                loss, metrics = self.objective.loss(scores, micro, window)
            if learn:
                self.accelerator.backward(counts * loss)
            for name, value in {"loss": loss.detach(), **metrics}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + counts * value
        return sum_metrics({name: float(value) for name, value in sums.items()}, self.accelerator)

    def _compute(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(*given) if self.sharded is None else self.sharded.compute(function, *given)


def stop_if_diverged(history: Sequence[StepMetrics], folder: Path) -> None:
    """Raises SpiritLevelError if the last step's numbers are not finite; `metrics.jsonl` then ends with them."""
    for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
        if not isfinite(history[-1][name]):
            if PartialState().is_main_process:
                write_jsonl(folder / "metrics.jsonl", history)
            raise SpiritLevelError(
                f"the {what} is not a finite number at step {history[-1]['step']:.0f}",
                where=str(folder),
                remedy="Lower the learning rate: the training then begins anew. Or ask `spiritlevel doctor` about it.",
            )


def peak_memory_gb() -> float:
    """Peak memory so far: of the accelerator if there is one, else of this process, in GB (1e9 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
