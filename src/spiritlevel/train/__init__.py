"""Training: one loop, many objectives."""

from spiritlevel.train.adapters import LoraSettings, LoraVariant, add_lora, merge_adapter, save_trained
from spiritlevel.train.loop import TrainConfig, prepare_examples, train
from spiritlevel.train.memory import Checkpointing
from spiritlevel.train.objective import Example, Objective, Window
from spiritlevel.train.objectives import (
    CPO,
    DPO,
    IPO,
    OBJECTIVES,
    ORPO,
    SFT,
    ConservativeDPO,
    Hinge,
    Pairwise,
    RobustDPO,
    SimPO,
)

__all__ = [
    "CPO",
    "DPO",
    "IPO",
    "OBJECTIVES",
    "ORPO",
    "SFT",
    "Checkpointing",
    "ConservativeDPO",
    "Example",
    "Hinge",
    "LoraSettings",
    "LoraVariant",
    "Objective",
    "Pairwise",
    "RobustDPO",
    "SimPO",
    "TrainConfig",
    "Window",
    "add_lora",
    "merge_adapter",
    "prepare_examples",
    "save_trained",
    "train",
]
