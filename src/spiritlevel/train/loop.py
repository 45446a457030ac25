"""Training on records: examples in, an optimised model out. A method is an objective, never another loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import LocalModel
from spiritlevel.train.adapters import fused_lora
from spiritlevel.train.batches import epoch_batches
from spiritlevel.train.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from spiritlevel.train.memory import gradient_checkpointing, needs_checkpointing
from spiritlevel.train.objective import Example, Objective
from spiritlevel.train.processes import first_says
from spiritlevel.train.step import StepMetrics, Stepper, TrainConfig, stop_if_diverged


def train(
    model: LocalModel,
    objective: Objective,
    examples: Sequence[Example],
    config: TrainConfig,
    folder: Path,
    *,
    validation: Sequence[Example] = (),
    on_step: Callable[[StepMetrics], None] | None = None,
) -> list[StepMetrics]:
    """Train `model` in place and return the metrics of every step; the last of an epoch has those on `validation` too,
    examples that are not learnt from.

    `folder` keeps `metrics.jsonl` and one checkpoint; a call with the same arguments after a kill goes on
    from it and ends with the same weights, bit for bit on the same machine (if "auto" found checkpointing needed for
    one of the two calls and not for the other: to rounding). Of several processes all train, and the first tells and
    keeps.
    """
    _check_lengths([example.fork.length for example in (*examples, *validation)], config)
    kinds = [example.kind for example in examples]
    schedule = [
        batch
        for epoch in range(config.epochs)
        for batch in epoch_batches(kinds, config.batch_size, seed=config.seed, epoch=epoch)
    ]
    mark = fingerprint(objective, [repr(example) for example in examples], config, model)
    stepper = Stepper(model, objective, config, len(schedule))
    history = load_checkpoint(folder, mark, stepper.optimizer)
    saved_at = time.monotonic()
    rest = ([examples[index].fork for index in batch] for batch in schedule[len(history) :])
    with (
        fused_lora(model.model),
        gradient_checkpointing(model, on=needs_checkpointing(model, config.checkpointing, rest, config.token_budget)),
    ):
        for number in range(len(history), len(schedule)):
            metrics = stepper.step(number, [examples[index] for index in schedule[number]])
            history.append(metrics | {"epoch": (number + 1) * config.epochs / len(schedule)})
            if validation and (number + 1) % (len(schedule) // config.epochs) == 0:
                history[-1] |= stepper.validate(validation)
            stop_if_diverged(history, folder)
            if on_step is not None and stepper.accelerator.is_main_process:
                on_step(history[-1])
            if first_says(time.monotonic() - saved_at >= config.save_seconds) or number + 1 == len(schedule):
                save_checkpoint(folder, mark, stepper.optimizer, history)
                saved_at = time.monotonic()
    stepper.finish()
    return history


def _check_lengths(lengths: Sequence[int], config: TrainConfig) -> None:
    if not lengths:
        raise SpiritLevelError("there is nothing to train on", remedy="Give at least one record.")
    if max(lengths) > config.max_length:
        count = sum(length > config.max_length for length in lengths)
        raise SpiritLevelError(
            f"{count} of {len(lengths)} examples exceed {config.max_length} tokens (the longest has {max(lengths)})",
            remedy="Shorten them or raise --max-length: cutting them here would cut off the end of the reply.",
        )
