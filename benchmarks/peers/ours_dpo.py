"""One DPO run with Spirit Level: the same job and the same figures as `trl_dpo.py`."""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from spiritlevel.data import Preference
from spiritlevel.models import open_local, plan_batches
from spiritlevel.models.scoring import lay_out_for
from spiritlevel.store import ContentStore, installed_versions
from spiritlevel.train import DPO, LoraSettings, TrainConfig, add_lora, prepare_examples, train
from spiritlevel.train.batches import epoch_batches

job = json.load(sys.stdin)
model = open_local(job["model"], dtype="float32" if job["curve"] else "bfloat16")
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
    student = add_lora(model, LoraSettings(), seed=0)
    if job["curve"]:  # for the peer to begin with
        student.model.save_pretrained(job["adapter"])
    history = train(student, objective, examples, config, Path(folder))
    ended = time.monotonic()
forks, kinds = [example.fork for example in examples], [example.kind for example in examples]
layouts = [
    lay_out_for(student.model, [forks[batch[index]] for index in part], pad_token=model.pad_token)
    for epoch in range(config.epochs)
    for batch in epoch_batches(kinds, config.batch_size, seed=config.seed, epoch=epoch)
    for part in plan_batches([forks[index].length for index in batch], config.token_budget)
]
json.dump(
    {
        "seconds": ended - started,
        "train_seconds": ended - built,
        # Tokens of all pairs, their prompts once; and those that the trunk saw in training, padding and all.
        "tokens": config.epochs * sum(fork.length for fork in forks),
        "computed": sum(layout.tokens.numel() + layout.start.numel() for layout in layouts),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "losses": [row["loss"] for row in history],
        "reference": [example.reference[0] for example in examples],
        "versions": installed_versions(),
    },
    sys.stdout,
)
