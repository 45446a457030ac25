"""Training: one loop, many objectives."""

from spiritlevel.train.actor_critic import ActorCritic, policy_alone, using_adapter
from spiritlevel.train.adapters import LoraSettings, LoraVariant, add_lora, merge_adapter, open_base, save_trained
from spiritlevel.train.best_of_n import best_of_n_kl, best_of_n_value, best_records, draw_rewarded
from spiritlevel.train.loop import train
from spiritlevel.train.memory import Checkpointing
from spiritlevel.train.objective import Example, Objective, RecordObjective, Window
from spiritlevel.train.objectives import (
    CPO,
    DPO,
    GRPO,
    IPO,
    KTO,
    OBJECTIVES,
    ONLINE,
    ORPO,
    PPO,
    RLOO,
    SFT,
    ConservativeDPO,
    Hinge,
    Pairwise,
    Reward,
    RobustDPO,
    SimPO,
)
from spiritlevel.train.objectives.pairwise import pair_fork
from spiritlevel.train.online import OnlineConfig, train_online
from spiritlevel.train.prepare import prepare_examples, verify_rollouts
from spiritlevel.train.reward_quality import RewardQuality, calibration_error, reward_quality
from spiritlevel.train.rewards import (
    Answered,
    RewardSource,
    charter_reward,
    function_reward,
    load_function,
    model_reward,
)
from spiritlevel.train.shared_reward import SharedReward
from spiritlevel.train.step import StepMetrics, TrainConfig

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
    "ActorCritic",
    "Answered",
    "Checkpointing",
    "ConservativeDPO",
    "Example",
    "Hinge",
    "LoraSettings",
    "LoraVariant",
    "Objective",
    "OnlineConfig",
    "Pairwise",
    "RecordObjective",
    "Reward",
    "RewardQuality",
    "RewardSource",
    "RobustDPO",
    "SharedReward",
    "SimPO",
    "StepMetrics",
    "TrainConfig",
    "Window",
    "add_lora",
    "best_of_n_kl",
    "best_of_n_value",
    "best_records",
    "calibration_error",
    "charter_reward",
    "draw_rewarded",
    "function_reward",
    "load_function",
    "merge_adapter",
    "model_reward",
    "open_base",
    "pair_fork",
    "policy_alone",
    "prepare_examples",
    "reward_quality",
    "save_trained",
    "train",
    "train_online",
    "using_adapter",
    "verify_rollouts",
]
