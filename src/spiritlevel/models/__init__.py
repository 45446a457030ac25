"""Models, local and served, and what is done with them: sampling and the scoring of forks."""

from spiritlevel.models.answers import answer_all
from spiritlevel.models.catalogue import PACKAGED, model_folder, open_local, open_model
from spiritlevel.models.export import GgufType, export_gguf
from spiritlevel.models.fork import Fork, Layout, lay_out, plan_batches
from spiritlevel.models.local import LocalModel
from spiritlevel.models.remote import RemoteModel
from spiritlevel.models.reply import Reply
from spiritlevel.models.sampling import Completion, Sampling, decode
from spiritlevel.models.scoring import ForkScores, score_batch, score_forks, verify_engine

ChatModel = LocalModel | RemoteModel

__all__ = [
    "PACKAGED",
    "ChatModel",
    "Completion",
    "Fork",
    "ForkScores",
    "GgufType",
    "Layout",
    "LocalModel",
    "RemoteModel",
    "Reply",
    "Sampling",
    "answer_all",
    "decode",
    "export_gguf",
    "lay_out",
    "model_folder",
    "open_local",
    "open_model",
    "plan_batches",
    "score_batch",
    "score_forks",
    "verify_engine",
]
