"""One DPO run with TRL, in TRL's own environment. Reads a job as JSON on stdin, prints figures as JSON on stdout."""

import json
import resource
import sys
import time

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

job = json.load(sys.stdin)
transformers.logging.set_verbosity_error()
tokenizer = AutoTokenizer.from_pretrained(job["model"])
tuned = {"gradient_checkpointing": False, "precompute_ref_log_probs": True} if job["tuned"] else {}
config = DPOConfig(
    output_dir=job["folder"],
    num_train_epochs=job["epochs"],
    per_device_train_batch_size=job["batch_size"],
    learning_rate=job["learning_rate"],
    beta=job["beta"],
    bf16=not job["curve"],
    use_cpu=True,
    seed=0,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    **tuned,
)
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["weights"]))
if job["curve"]:
    model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
started = time.monotonic()
trainer = DPOTrainer(
    model=model,
    args=config,
    train_dataset=Dataset.from_list(job["pairs"]),
    processing_class=tokenizer,
    peft_config=None if job["curve"] else lora,
)
collate, computed = trainer.data_collator, []


def counting(rows):
    batch = collate(rows)
    computed.append(batch["input_ids"].numel())
    return batch


trainer.data_collator = counting
built = time.monotonic()
trainer.train()
ended = time.monotonic()
history = [row for row in trainer.state.log_history if "loss" in row]
columns = trainer.train_dataset.column_names
json.dump(
    {
        "seconds": ended - started,  # tokenising, reference log-probabilities and training
        "train_seconds": ended - built,
        "computed": sum(computed),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "losses": [row["loss"] for row in history],
        "reference": list(trainer.train_dataset["ref_chosen_logps"]) if "ref_chosen_logps" in columns else None,
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    },
    sys.stdout,
)
