"""The same start for both sides of a comparison: one reward head, one fresh LoRA adapter beside it."""

from __future__ import annotations

from pathlib import Path

from spiritlevel.models import PACKAGED, LocalModel, RewardModel, open_local
from spiritlevel.train import LoraSettings, add_lora, save_trained


def write_start(folder: Path, *, seed: int) -> LocalModel:
    """Write `classifier`, SmolLM2 with a random head, and `adapter`, what LoRA begins with on it, in bfloat16.

    Returns the model, for its tokens.
    """
    base = open_local(PACKAGED, dtype="bfloat16")
    reward = RewardModel.on(base, seed=seed)
    save_trained(reward, folder / "classifier", form="merged")
    save_trained(add_lora(reward, LoraSettings(), seed=seed), folder / "adapter", form="adapter")
    return base
