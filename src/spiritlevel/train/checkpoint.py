"""The one checkpoint of a training: what a killed run needs to go on to the same weights, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import PartialState

from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import LocalModel
from spiritlevel.store import atomic_path, digest_json, write_jsonl
from spiritlevel.train.objective import Objective
from spiritlevel.train.optimizer import MasterAdamW
from spiritlevel.train.sharding import joined_state
from spiritlevel.train.step import StepMetrics, TrainConfig

# Of the checkpoint, and of what decides how a step is computed: one of another format is not gone on from.
_FORMAT = 4
# Settings that a run may go on with other values of: the weights stay the same, to rounding.
_FREE = ("save_seconds", "checkpointing", "shard")


def fingerprint(objective: Objective, data: Sequence[Any], config: TrainConfig, model: LocalModel) -> str:
    """What a checkpoint must have in common with a run that goes on from it, frozen weights included.

    data: what is trained on, as plain JSON.
    """
    start = sum(float(weight.detach().abs().sum(dtype=torch.float64)) for weight in model.model.parameters())
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE}
    # The scale of an adapter is in its settings, not in its weights; and alike ones may be on other modules.
    adapters = getattr(model.model, "peft_config", {}).items()
    scales = {name: [lora.lora_alpha, lora.use_rslora, lora.use_dora] for name, lora in adapters}
    trained = [name for name, weight in model.model.named_parameters() if weight.requires_grad]
    return digest_json([_FORMAT, objective.name, repr(objective), settings, data, repr(start), scales, trained])


def save_checkpoint(folder: Path, fingerprint: str, optimizer: MasterAdamW, history: list[StepMetrics]) -> None:
    """All processes must call; the first writes."""
    first = PartialState().is_main_process
    optimizer_state = joined_state(optimizer.state_dict(), keep=first)
    if not first:
        return
    write_jsonl(folder / "metrics.jsonl", history)
    state = {
        "fingerprint": fingerprint,
        "history": json.dumps(history),
        **optimizer_state,
    }
    # Through a file of Python's: given a path, torch does not say why it could not write.
    with atomic_path(folder / "checkpoint.pt") as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def load_checkpoint(folder: Path, fingerprint: str, optimizer: MasterAdamW) -> list[StepMetrics]:
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
    history: list[StepMetrics] = json.loads(state["history"])
    return history
