"""One reward model with Spirit Level: the same job and the same figures as `trl_reward.py`."""

import json
import sys
import tempfile
import time
from pathlib import Path

from figures import TokenCount, peak_gb

from spiritlevel.data import Preference
from spiritlevel.models import open_reward_model
from spiritlevel.store import installed_versions
from spiritlevel.train import LoraSettings, Reward, TrainConfig, add_lora, train

job = json.load(sys.stdin)
base = open_reward_model(Path(job["folder"], "classifier"), dtype="bfloat16")
count = TokenCount(base.model)
config = TrainConfig(
    learning_rate=job["learning_rate"], epochs=1, batch_size=job["batch_size"], warmup=0.0, seed=job["seed"],
    token_budget=job["token_budget"], save_seconds=1e9,
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    started = time.monotonic()
    objective = Reward()
    examples = objective.examples([Preference.model_validate(pair) for pair in job["pairs"]], base)
    student = add_lora(base, LoraSettings(), seed=job["seed"])
    history = train(student, objective, examples, config, Path(folder))
    ended = time.monotonic()
json.dump(
    {
        "seconds": ended - started,
        "peak_gb": peak_gb(),
        "tokens": count.tokens,
        "losses": [row["loss"] for row in history],
        "versions": installed_versions(),
    },
    sys.stdout,
)
