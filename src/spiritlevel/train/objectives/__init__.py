"""Training objectives, one file each."""

from spiritlevel.train.objectives.dpo import DPO, dpo_loss
from spiritlevel.train.objectives.sft import SFT

OBJECTIVES = {objective.name: objective for objective in (SFT, DPO)}

__all__ = ["DPO", "OBJECTIVES", "SFT", "dpo_loss"]
