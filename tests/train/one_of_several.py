"""A small training, alone or as one process of several. Called by test_processes.py with a folder and a method."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from spiritlevel.data import Preference
from spiritlevel.models import open_local
from spiritlevel.store import ContentStore
from spiritlevel.train import OBJECTIVES, LoraSettings, TrainConfig, add_lora, prepare_examples, train
from tiny import save_model

folder, method = Path(sys.argv[1]), sys.argv[2]
base = open_local(str(save_model(folder / f"tiny-{os.environ.get('RANK', 0)}", dtype=torch.float32)), dtype="float32")
words = ["the", "user", "in", "on", "hello", "as", "a", "and"]
records = [
    Preference.of(f"hello {words[n % 8]} {n}", " ".join(words[: 1 + n % 5]), " ".join(words[n % 4 :]))
    for n in range(11)
]
settings = {} if method == "sft" else {"beta": 0.1}
objective = OBJECTIVES[method](**settings)
examples = prepare_examples(base, objective, records, store=ContentStore(folder / "store"))
student = add_lora(base, LoraSettings(4, 8), seed=7)
config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, token_budget=60, save_seconds=0)
train(student, objective, examples, config, folder)
trained = {name: weight.detach() for name, weight in student.model.named_parameters() if weight.requires_grad}
if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
    save_file(trained, folder / "weights.safetensors")
