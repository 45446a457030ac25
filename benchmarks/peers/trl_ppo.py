"""Iterations of PPO with TRL, in TRL's own environment: a job as JSON on stdin, figures as JSON on stdout."""

import json
import os
import sys
import time
from pathlib import Path

os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # TRL's PPO does not hand its `bf16` on
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from figures import TokenCount, peak_gb
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

job = json.load(sys.stdin)
transformers.logging.set_verbosity_error()
folder = Path(job["folder"])
weights = torch.bfloat16 if job["tuned"] else torch.float32
lora = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
tokenizer = AutoTokenizer.from_pretrained(folder / "classifier", padding_side="left")
policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=weights)
reward, value = (
    AutoModelForSequenceClassification.from_pretrained(folder / "classifier", num_labels=1, dtype=weights)
    for _ in range(2)
)
if job["tuned"]:
    inject_adapter_in_model(LoraConfig(**lora, task_type="SEQ_CLS"), value)
    value.score.requires_grad_(True)
count = TokenCount(policy, reward, value)
replies = len(job["prompts"]) * job["samples"]
config = PPOConfig(
    output_dir=str(folder / "trl"),
    total_episodes=replies * job["iterations"],
    # A step a minibatch: with gradient accumulation TRL steps once a pass, whatever `num_mini_batches` says.
    per_device_train_batch_size=replies,
    gradient_accumulation_steps=1,
    num_mini_batches=job["minibatches"],
    num_ppo_epochs=job["epochs"],
    response_length=job["new_tokens"],
    temperature=1.0,
    learning_rate=job["learning_rate"],
    bf16=True,
    use_cpu=True,
    seed=job["seed"],
    num_sample_generations=0,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
)
prompts = [
    tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    for chat in job["prompts"]
    for _ in range(job["samples"])
]
trainer = PPOTrainer(
    args=config,
    processing_class=tokenizer,
    model=policy,
    ref_model=None,
    reward_model=reward,
    value_model=value,
    train_dataset=Dataset.from_dict({"input_ids": prompts}),
    peft_config=LoraConfig(**lora, task_type="CAUSAL_LM"),
)
started = time.monotonic()
trainer.train()
ended = time.monotonic()
names = {"ratio": "val/ratio", "kl": "objective/kl", "reward": "objective/scores", "entropy": "policy/entropy_avg"}
json.dump(
    {
        "seconds": ended - started,
        "peak_gb": peak_gb(),
        "tokens": count.tokens,
        # Means over an iteration's steps.
        "history": [
            {name: row[key] for name, key in names.items()} for row in trainer.state.log_history if "val/ratio" in row
        ],
        "versions": {
            "trl": trl.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    },
    sys.stdout,
)
