"""The one training loop: forks in, an optimised model out. A method is an objective, never another loop."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, get_args

import torch
from accelerate import Accelerator

from spiritlevel.data import Preference
from spiritlevel.errors import SpiritLevelError, check_setting
from spiritlevel.models import LocalModel, plan_batches, score_batch, score_forks, verify_engine
from spiritlevel.store import ContentStore, atomic_path, compute_missing, digest_json, write_jsonl
from spiritlevel.train.adapters import fused_lora
from spiritlevel.train.batches import epoch_batches
from spiritlevel.train.memory import Checkpointing, gradient_checkpointing
from spiritlevel.train.objective import Example, Objective, Window
from spiritlevel.train.optimizer import MasterAdamW, Schedule, learning_rate


@dataclass(frozen=True)
class TrainConfig:
    """batch_size: examples per optimiser step, cut into micro-batches of at most `token_budget` tokens.

    warmup: share of all steps. save_seconds: time between checkpoints. max_length: longest row in tokens.
    checkpointing: whether layers compute their activations twice to save memory; "auto" where they would not fit.
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

    def __post_init__(self) -> None:
        check_setting("learning_rate", self.learning_rate, 0 < self.learning_rate < inf, "a number above 0")
        check_setting("epochs", self.epochs, self.epochs >= 1, "at least 1")
        check_setting("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check_setting("warmup", self.warmup, 0 <= self.warmup <= 1, "a share from 0 to 1")
        check_setting("weight_decay", self.weight_decay, 0 <= self.weight_decay < inf, "0 or more")
        check_setting("max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "a number above 0")
        known = self.checkpointing in get_args(Checkpointing)
        check_setting("checkpointing", self.checkpointing, known, "auto, on or off")


StepMetrics = dict[str, float]

# Of the checkpoint, and of what decides how a step is computed: one of another format is not gone on from.
_FORMAT = 3


def train(
    model: LocalModel,
    objective: Objective,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    *,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> list[StepMetrics]:
    """Train `model` in place and return the metrics of every step.

    `folder` keeps `metrics.jsonl` and one checkpoint; a call with the same arguments after a kill goes on
    from it and ends with the same weights, bit for bit on the same machine (if "auto" found checkpointing needed for
    one of the two calls and not for the other: to rounding).
    """
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    if accelerator.num_processes > 1:
        raise SpiritLevelError(
            f"training runs on one process so far, and there are {accelerator.num_processes}",
            remedy="Start it by `spiritlevel` or `python`, not by `accelerate launch` or `torchrun`.",
        )
    _check_lengths([example.fork.length for example in examples], config)
    kinds = [example.kind for example in examples]
    optimizer = MasterAdamW(model.model.parameters(), weight_decay=config.weight_decay)
    schedule = [
        batch
        for epoch in range(config.epochs)
        for batch in epoch_batches(kinds, config.batch_size, seed=config.seed, epoch=epoch)
    ]
    fingerprint = _fingerprint(objective, examples, config, model)
    torch.manual_seed(config.seed)  # dropout
    history = _resume(folder, fingerprint, optimizer)
    model.model.train()
    saved_at = time.monotonic()
    rest = ([examples[index].fork for index in batch] for batch in schedule[len(history) :])
    with fused_lora(model.model), gradient_checkpointing(model, config.checkpointing, rest, config.token_budget):
        for step in range(len(history), len(schedule)):
            started = time.monotonic()
            batch = [examples[index] for index in schedule[step]]
            window = Window.over(batch)
            metrics: dict[str, torch.Tensor] = {}
            for part in plan_batches([example.fork.length for example in batch], config.token_budget):
                micro = [batch[index] for index in part]
                scores = score_batch(model.model, [example.fork for example in micro], pad_token=model.pad_token)
                loss, more = objective.loss(scores, micro, window)
                accelerator.backward(loss)
                for name, value in {"loss": loss.detach(), **more}.items():
                    metrics[name] = metrics.get(name, torch.zeros_like(value)) + value
            rate = learning_rate(
                step, len(schedule), peak=config.learning_rate, warmup=config.warmup, schedule=config.schedule
            )
            norm = optimizer.step(rate, config.max_grad_norm)
            seconds = time.monotonic() - started
            history.append(
                {
                    "step": step + 1,
                    "steps": len(schedule),
                    "epoch": (step + 1) * config.epochs / len(schedule),
                    **{name: float(value) for name, value in metrics.items()},
                    "grad_norm": norm,
                    "learning_rate": rate,
                    "tokens_per_second": sum(example.fork.length for example in batch) / seconds,
                    "memory_gb": peak_memory_gb(),
                    "seconds": seconds,
                }
            )
            _stop_if_diverged(history[-1], folder)
            if on_step is not None:
                on_step(history[-1])
            if time.monotonic() - saved_at >= config.save_seconds or step + 1 == len(schedule):
                _save(folder, fingerprint, optimizer, history)
                saved_at = time.monotonic()
    model.model.eval()
    return history


def prepare_examples(
    model: LocalModel,
    objective: Objective,
    records: Sequence[Preference],
    *,
    store: ContentStore,
    token_budget: int = 4096,
    on_progress: Callable[[int], None] | None = None,
) -> list[Example]:
    """Forks of all records and, where the objective needs them, their reference log-probabilities.

    The reference is `model` as it is now: call this before it gets an adapter or is trained.
    """
    forks = [objective.fork(record, model) for record in records]
    # The longest: what goes wrong with length, such as a sliding window, shows in no shorter one.
    verify_engine(model.model, max(forks, key=lambda fork: fork.length), pad_token=model.pad_token)
    questions = [objective.reference_fork(fork) for fork in forks]
    asked = [question for question in questions if question is not None]
    keys = [digest_json(["reference", model.digest, fork.prompt, fork.continuations]) for fork in asked]

    def compute(indices: Sequence[int], done: Callable[[int, Any], None]) -> None:
        batch = [asked[index] for index in indices]
        sums = score_forks(model.model, batch, pad_token=model.pad_token, token_budget=token_budget)
        for index, values in zip(indices, sums, strict=True):
            done(index, values)

    batches = plan_batches([fork.length for fork in asked], token_budget)
    references = iter(compute_missing(store, keys, batches, compute, on_progress))
    return [
        Example(fork, () if question is None else tuple(next(references)), record.source)
        for fork, question, record in zip(forks, questions, records, strict=True)
    ]


def peak_memory_gb() -> float:
    """Peak memory so far: of the accelerator if there is one, else of this process, in GB (1e9 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _check_lengths(lengths: Sequence[int], config: TrainConfig) -> None:
    if not lengths:
        raise SpiritLevelError("there is nothing to train on", remedy="Give at least one record.")
    if max(lengths) > config.max_length:
        count = sum(length > config.max_length for length in lengths)
        raise SpiritLevelError(
            f"{count} of {len(lengths)} examples exceed {config.max_length} tokens (the longest has {max(lengths)})",
            remedy="Shorten them or raise --max-length: cutting them here would cut off the end of the reply.",
        )


def _stop_if_diverged(metrics: StepMetrics, folder: Path) -> None:
    for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
        if not isfinite(metrics[name]):
            raise SpiritLevelError(
                f"the {what} is not a finite number at step {metrics['step']:.0f}",
                where=str(folder),
                remedy="Lower the learning rate; the last checkpoint is kept.",
            )


def _fingerprint(objective: Objective, examples: Sequence[Example], config: TrainConfig, model: LocalModel) -> str:
    """What a checkpoint must have in common with a run that goes on from it, frozen weights included."""
    start = sum(float(weight.detach().abs().sum(dtype=torch.float64)) for weight in model.model.parameters())
    settings = {name: value for name, value in asdict(config).items() if name not in ("save_seconds", "checkpointing")}
    # The scale of an adapter is in its settings, not in its weights; and alike ones may be on other modules.
    adapters = getattr(model.model, "peft_config", {}).items()
    scales = {name: [lora.lora_alpha, lora.use_rslora, lora.use_dora] for name, lora in adapters}
    trained = [name for name, weight in model.model.named_parameters() if weight.requires_grad]
    forks = [[example.fork.prompt, example.fork.continuations, example.reference, example.kind] for example in examples]
    return digest_json([_FORMAT, objective.name, repr(objective), settings, forks, repr(start), scales, trained])


def _save(folder: Path, fingerprint: str, optimizer: MasterAdamW, history: list[StepMetrics]) -> None:
    write_jsonl(folder / "metrics.jsonl", history)
    state = {
        "fingerprint": fingerprint,
        "history": json.dumps(history),
        "random": _random_states(),  # which a model with dropout draws from
        **optimizer.state_dict(),
    }
    # Through a file of Python's: given a path, torch does not say why it could not write.
    with atomic_path(folder / "checkpoint.pt") as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def _random_states() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]


def _resume(folder: Path, fingerprint: str, optimizer: MasterAdamW) -> list[StepMetrics]:
    """Load the checkpoint if it belongs to this training; its history, or an empty one."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise SpiritLevelError(
            "the checkpoint is damaged", where=str(path), remedy="Delete it: the training then begins anew."
        ) from error
    if state["fingerprint"] != fingerprint:
        return []
    optimizer.load_state_dict(state)
    torch.set_rng_state(state["random"][0])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random"][1:])
    history: list[StepMetrics] = json.loads(state["history"])
    return history
