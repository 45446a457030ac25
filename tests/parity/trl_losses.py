"""TRL's losses and gradients on given token ids, in TRL's own environment.

Reads a job as JSON on stdin: {"policy": DIR, "reference": DIR, "pairs": [[prompt, chosen, rejected], ...] as token ids,
"cases": {name: {"trainer": "dpo" | "cpo" | "orpo", ...settings}}}; writes {name: {"loss": x, "gradient": FILE}} on
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
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

CLASSES = {"dpo": (trl.DPOConfig, trl.DPOTrainer), "cpo": (CPOConfig, CPOTrainer), "orpo": (ORPOConfig, ORPOTrainer)}
job = json.load(sys.stdin)
transformers.logging.set_verbosity_error()
tokenizer = AutoTokenizer.from_pretrained(job["policy"])
pad = 0  # any: it is masked
text = Dataset.from_list([{"prompt": "hello", "chosen": " the user", "rejected": " in the"}])  # only to build a trainer


def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def dpo_batch() -> dict[str, torch.Tensor]:
    rows = [(prompt, reply) for place in (1, 2) for prompt, reply in ((pair[0], pair[place]) for pair in job["pairs"])]
    return {
        "input_ids": padded([prompt + reply for prompt, reply in rows], pad),
        "attention_mask": padded([[1] * len(prompt + reply) for prompt, reply in rows], 0),
        "completion_mask": padded([[0] * len(prompt) + [1] * len(reply) for prompt, reply in rows], 0),
    }


def side_by_side_batch() -> dict[str, torch.Tensor]:
    batch = {}
    for place, side in ((1, "chosen"), (2, "rejected")):
        rows = [(pair[0], pair[place]) for pair in job["pairs"]]
        batch[f"{side}_input_ids"] = padded([prompt + reply for prompt, reply in rows], pad)
        batch[f"{side}_attention_mask"] = padded([[1] * len(prompt + reply) for prompt, reply in rows], 0)
        batch[f"{side}_labels"] = padded([[-100] * len(prompt) + reply for prompt, reply in rows], -100)
    return batch


found = {}
for name, settings in job["cases"].items():
    kind = settings.pop("trainer")
    config, trainer = CLASSES[kind]
    model, reference = (
        AutoModelForCausalLM.from_pretrained(job[who], dtype=torch.float32) for who in ("policy", "reference")
    )
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(
            model=model,
            args=config(folder, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False, **settings),
            train_dataset=text,
            processing_class=tokenizer,
            **({"ref_model": reference} if kind == "dpo" else {}),
        )
        if kind == "orpo":  # without its NLL term, which TRL takes over the prompt too
            forward = made.concatenated_forward
            made.concatenated_forward = lambda *given, forward=forward: (*forward(*given)[:4], torch.zeros(()))
        model.train()
        loss = made.compute_loss(made.model, dpo_batch() if kind == "dpo" else side_by_side_batch())
        loss.backward()
    file = str(Path(job["folder"]) / f"{name}.safetensors")
    save_file({key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}, file)
    found[name] = {"loss": loss.item(), "gradient": file}
json.dump({"trl": trl.__version__, "found": found}, sys.stdout)
