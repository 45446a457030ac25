"""Training: one loop, many objectives."""

from spiritlevel.train.adapters import LoraSettings, add_lora, save_trained
from spiritlevel.train.loop import train
from spiritlevel.train.objective import Example, Objective, RecordObjective, Window
from spiritlevel.train.objectives import (
    CPO,
    DPO,
    IPO,
    KTO,
    OBJECTIVES,
    ORPO,
    SFT,
    ConservativeDPO,
    Hinge,
    Pairwise,
    Reward,
    RobustDPO,
    SimPO,
)
from spiritlevel.train.prepare import prepare_examples
from spiritlevel.train.step import StepMetrics, TrainConfig

__all__ = [
    "CPO",
    "DPO",
    "IPO",
    "KTO",
    "OBJECTIVES",
    "ORPO",
    "SFT",
    "ConservativeDPO",
    "Example",
    "Hinge",
    "LoraSettings",
    "Objective",
    "Pairwise",
    "RecordObjective",
    "Reward",
    "RobustDPO",
    "SimPO",
    "StepMetrics",
    "TrainConfig",
    "Window",
    "add_lora",
    "prepare_examples",
    "save_trained",
    "train",
]
