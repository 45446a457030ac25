"""One DPO run with Spirit Level: the same job and the same figures as `trl_dpo.py`."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from spiritlevel.data import Preference
from spiritlevel.models import open_local
from spiritlevel.store import ContentStore, installed_versions
from spiritlevel.train import DPO, LoraSettings, TrainConfig, add_lora, prepare_examples, train

job = json.load(sys.stdin)
model = open_local(job["model"], dtype="bfloat16")
objective = DPO(beta=job["beta"])
config = TrainConfig(
    learning_rate=job["learning_rate"], epochs=job["epochs"], batch_size=job["batch_size"], warmup=0.0,
    token_budget=job["token_budget"], save_seconds=1e9,
)  # fmt: skip
with tempfile.TemporaryDirectory() as folder:
    started = time.monotonic()
    records = [Preference.model_validate(pair) for pair in job["pairs"]]
    examples = prepare_examples(model, objective, records, store=ContentStore(Path(folder) / "store"))
    built = time.monotonic()
    history = train(add_lora(model, LoraSettings(), seed=0), objective, examples, config, Path(folder))
    ended = time.monotonic()
json.dump(
    {
        "seconds": ended - started,
        "train_seconds": ended - built,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "losses": [row["loss"] for row in history],
        "reference": [example.reference[0] for example in examples],
        "versions": installed_versions(),
    },
    sys.stdout,
)
