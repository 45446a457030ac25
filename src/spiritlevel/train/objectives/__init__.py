"""Training objectives, one file each."""

from spiritlevel.train.objective import RecordObjective
from spiritlevel.train.objectives.cdpo import ConservativeDPO, cdpo_loss
from spiritlevel.train.objectives.cpo import CPO
from spiritlevel.train.objectives.dpo import DPO, dpo_loss
from spiritlevel.train.objectives.grpo import GRPO
from spiritlevel.train.objectives.hinge import Hinge, hinge_loss
from spiritlevel.train.objectives.ipo import IPO, ipo_loss
from spiritlevel.train.objectives.kto import KTO, kto_loss
from spiritlevel.train.objectives.orpo import ORPO, orpo_loss
from spiritlevel.train.objectives.pairwise import Pairs, Pairwise
from spiritlevel.train.objectives.policy import PolicyObjective
from spiritlevel.train.objectives.ppo import PPO
from spiritlevel.train.objectives.reward import Reward, bradley_terry_loss
from spiritlevel.train.objectives.rloo import RLOO
from spiritlevel.train.objectives.robust_dpo import RobustDPO, robust_dpo_loss
from spiritlevel.train.objectives.sft import SFT
from spiritlevel.train.objectives.simpo import SimPO, simpo_loss

OBJECTIVES: dict[str, type[RecordObjective]] = {
    objective.name: objective
    for objective in (SFT, Reward, DPO, ConservativeDPO, RobustDPO, IPO, Hinge, SimPO, CPO, ORPO, KTO)
}

ONLINE: dict[str, type[PolicyObjective]] = {objective.name: objective for objective in (PPO, GRPO, RLOO)}

__all__ = [
    "CPO",
    "DPO",
    "GRPO",
    "IPO",
    "KTO",
    "OBJECTIVES",
    "ONLINE",
    "ORPO",
    "PPO",
    "RLOO",
    "SFT",
    "ConservativeDPO",
    "Hinge",
    "Pairs",
    "Pairwise",
    "Reward",
    "RobustDPO",
    "SimPO",
    "bradley_terry_loss",
    "cdpo_loss",
    "dpo_loss",
    "hinge_loss",
    "ipo_loss",
    "kto_loss",
    "orpo_loss",
    "robust_dpo_loss",
    "simpo_loss",
]
