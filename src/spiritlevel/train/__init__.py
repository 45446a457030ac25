"""Training: one loop, many objectives."""

from spiritlevel.train.adapters import LoraSettings, add_lora, save_trained
from spiritlevel.train.loop import TrainConfig, prepare_examples, train
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
    "ConservativeDPO",
    "Example",
    "Hinge",
    "LoraSettings",
    "Objective",
    "Pairwise",
    "RobustDPO",
    "SimPO",
    "TrainConfig",
    "Window",
    "add_lora",
    "prepare_examples",
    "save_trained",
    "train",
]
