"""Training: one loop, many objectives."""

from spiritlevel.train.adapters import LoraSettings, add_lora, save_trained
from spiritlevel.train.loop import TrainConfig, prepare_examples, train
from spiritlevel.train.objective import Example, Objective, Window
from spiritlevel.train.objectives import DPO, OBJECTIVES, SFT, dpo_loss

__all__ = [
    "DPO",
    "OBJECTIVES",
    "SFT",
    "Example",
    "LoraSettings",
    "Objective",
    "TrainConfig",
    "Window",
    "add_lora",
    "dpo_loss",
    "prepare_examples",
    "save_trained",
    "train",
]
