"""Models, local and served, and what is done with them: sampling and the scoring of forks."""

from spiritlevel.models.answers import answer_all
from spiritlevel.models.catalogue import PACKAGED, model_folder, open_local, open_model
from spiritlevel.models.export import GgufType, export_gguf
from spiritlevel.models.fork import Fork, Layout, lay_out, plan_batches
from spiritlevel.models.local import LocalModel
from spiritlevel.models.remote import RemoteModel
from spiritlevel.models.reply import Reply
from spiritlevel.models.reward import RewardModel, open_reward_model, reward_fork
from spiritlevel.models.rollout import InProcess, Rollout, RolloutEngine
from spiritlevel.models.sampling import Completion, Sampling, decode
from spiritlevel.models.scoring import (
    ForkScores,
    lay_out_for,
    predicting_states,
    score_batch,
    score_forks,
    score_layout,
    trunk_of,
    verify_engine,
)
from spiritlevel.models.vllm import VLLM

ChatModel = LocalModel | RemoteModel

__all__ = [
    "PACKAGED",
    "VLLM",
    "ChatModel",
    "Completion",
    "Fork",
    "ForkScores",
    "GgufType",
    "InProcess",
    "Layout",
    "LocalModel",
    "RemoteModel",
    "Reply",
    "RewardModel",
    "Rollout",
    "RolloutEngine",
    "Sampling",
    "answer_all",
    "decode",
    "export_gguf",
    "lay_out",
    "lay_out_for",
    "model_folder",
    "open_local",
    "open_model",
    "open_reward_model",
    "plan_batches",
    "predicting_states",
    "reward_fork",
    "score_batch",
    "score_forks",
    "score_layout",
    "trunk_of",
    "verify_engine",
]
