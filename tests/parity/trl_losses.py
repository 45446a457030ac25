"""TRL's losses and gradients on given token ids, in TRL's own environment.

Reads a job as JSON on stdin: {"policy": DIR, "reference": DIR, "reward": DIR, "pairs": [[prompt, chosen, rejected],
...] as token ids, "others": for each chosen and then each rejected reply one to another prompt, "cases": {name:
{"trainer": "dpo" | "cpo" | "orpo" | "kto" | "reward", ...settings}}}; writes {name: {"loss": x, "gradient": FILE}} on
stdout, each gradient a safetensors file in the job's "folder".
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

CLASSES = {
    "dpo": (trl.DPOConfig, trl.DPOTrainer),
    "cpo": (CPOConfig, CPOTrainer),
    "orpo": (ORPOConfig, ORPOTrainer),
    "kto": (trl.KTOConfig, trl.KTOTrainer),
    "reward": (trl.RewardConfig, trl.RewardTrainer),
}
job = json.load(sys.stdin)
transformers.logging.set_verbosity_error()
tokenizer = AutoTokenizer.from_pretrained(job["policy"])
pad = 0  # any: it is masked
# Only to build a trainer.
text = Dataset.from_list([{"prompt": "hello", "chosen": " the user", "rejected": " in the"}])
judged = Dataset.from_list([{"prompt": "hello", "completion": reply, "label": reply == " a"} for reply in (" a", " b")])


def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def completions(
    rows: list[tuple[list[int], list[int]]], prefix: str = "", filler: int = pad
) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}input_ids": padded([prompt + reply for prompt, reply in rows], filler),
        f"{prefix}attention_mask": padded([[1] * len(prompt + reply) for prompt, reply in rows], 0),
        f"{prefix}completion_mask": padded([[0] * len(prompt) + [1] * len(reply) for prompt, reply in rows], 0),
    }


def dpo_batch() -> dict[str, torch.Tensor]:
    """All chosen replies, then all rejected ones."""
    return completions(replies)


def kto_batch() -> dict[str, torch.Tensor]:
    others = [(prompt, other) for (prompt, _), other in zip(replies, job["others"], strict=True)]
    label = torch.tensor([True] * len(job["pairs"]) + [False] * len(job["pairs"]))
    return completions(replies) | completions(others, "KL_") | {"label": label}


def reward_batch() -> dict[str, torch.Tensor]:
    batch = completions(replies, filler=reward_pad)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def side_by_side_batch() -> dict[str, torch.Tensor]:
    batch = {}
    for place, side in ((1, "chosen"), (2, "rejected")):
        rows = [(pair[0], pair[place]) for pair in job["pairs"]]
        batch[f"{side}_input_ids"] = padded([prompt + reply for prompt, reply in rows], pad)
        batch[f"{side}_attention_mask"] = padded([[1] * len(prompt + reply) for prompt, reply in rows], 0)
        batch[f"{side}_labels"] = padded([[-100] * len(prompt) + reply for prompt, reply in rows], -100)
    return batch


replies = [(pair[0], pair[place]) for place in (1, 2) for pair in job["pairs"]]
reward_pad = AutoModelForSequenceClassification.from_pretrained(job["reward"]).config.pad_token_id
BATCHES = {
    "dpo": dpo_batch,
    "cpo": side_by_side_batch,
    "orpo": side_by_side_batch,
    "kto": kto_batch,
    "reward": reward_batch,
}
found = {}
for name, settings in job["cases"].items():
    kind = settings.pop("trainer")
    config, trainer = CLASSES[kind]
    if kind == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(job["reference"], dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(
            model=model,
            args=config(folder, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False, **settings),
            train_dataset=judged if kind == "kto" else text,
            processing_class=AutoTokenizer.from_pretrained(job["reward"]) if kind == "reward" else tokenizer,
            **({"ref_model": reference} if kind in ("dpo", "kto") else {}),
        )
        if kind == "orpo":  # without its NLL term, which TRL takes over the prompt too
            forward = made.concatenated_forward
            made.concatenated_forward = lambda *given, forward=forward: (*forward(*given)[:4], torch.zeros(()))
        model.train()
        loss = made.compute_loss(made.model, BATCHES[kind]())
        loss.backward()
    file = str(Path(job["folder"]) / f"{name}.safetensors")
    save_file({key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}, file)
    found[name] = {"loss": loss.item(), "gradient": file}
json.dump({"trl": trl.__version__, "found": found}, sys.stdout)
