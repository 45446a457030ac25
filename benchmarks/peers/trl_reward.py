"""One reward model with TRL, in TRL's own environment: a job as JSON on stdin, figures as JSON on stdout."""

import json
import sys
import time
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from figures import TokenCount, peak_gb
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

job = json.load(sys.stdin)
transformers.logging.set_verbosity_error()
folder = Path(job["folder"])
weights = getattr(torch, job["weights"])
base = AutoModelForSequenceClassification.from_pretrained(folder / "classifier", num_labels=1, dtype=weights)
model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
count = TokenCount(model)
tuned = {"gradient_checkpointing": False} if job["tuned"] else {}
config = RewardConfig(
    output_dir=str(folder / "trl"),
    num_train_epochs=1,
    per_device_train_batch_size=job["batch_size"],
    learning_rate=job["learning_rate"],
    train_sampling_strategy="sequential",  # the rows come in the order in which our loop takes them
    bf16=True,
    use_cpu=True,
    seed=job["seed"],
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    **tuned,
)
rows = [{name: row[name] for name in ("chosen_ids", "rejected_ids")} for row in job["rows"]]
trainer = RewardTrainer(
    model=model,
    args=config,
    train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(folder / "classifier"),
)
started = time.monotonic()
trainer.train()
ended = time.monotonic()
json.dump(
    {
        "seconds": ended - started,
        "peak_gb": peak_gb(),
        "tokens": count.tokens,
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    },
    sys.stdout,
)
