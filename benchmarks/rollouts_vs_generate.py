"""Rollouts: tokens a second, ours against `transformers.generate`, equal model, precision, prompts and lengths.

64 questions behind a system prompt of about 300 tokens, 4 samples each, 64 new tokens at temperature 1, no early end.
The peer gets the batch size that suits it best of those tried on an eighth of the prompts. Correct if greedy replies in
float32 are the same token by token.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from spiritlevel.charter import load_charter, read_probes
from spiritlevel.chat import Chat, system, user
from spiritlevel.models import PACKAGED, InProcess, LocalModel, Sampling, model_folder, open_local
from spiritlevel.store import installed_versions, machine

HERE = Path(__file__).parent
CHARTER = HERE.parent / "examples" / "accounting" / "charter.yaml"
SAMPLES, NEW, SYSTEM_TOKENS = 4, 64, 300
PEER_ROWS = (8, 16, 32)


def chats(model: LocalModel, count: int) -> list[Chat]:
    charter = load_charter(CHARTER)
    words = (HERE.parent / "README.md").read_text(encoding="utf-8")
    head = model.tokenizer.decode(model.tokenizer(words, add_special_tokens=False)["input_ids"][:SYSTEM_TOKENS])
    return [[system(head), user(probe.prompt)] for probe in read_probes(charter, "train")[:count]]


def ours(model: LocalModel, prompts: list[tuple[int, ...]], rows: int) -> dict[str, Any]:
    model.stop_tokens = frozenset()
    seeds = [[SAMPLES * place + sample for sample in range(SAMPLES)] for place in range(len(prompts))]
    started = time.monotonic()
    drawn = InProcess(model, rows=rows).generate(prompts, Sampling(NEW, 1.0), seeds=seeds)
    seconds = time.monotonic() - started
    return {"seconds": seconds, "tokens": sum(len(one.tokens) for group in drawn for one in group)}


def theirs(model: LocalModel, prompts: list[tuple[int, ...]], rows: int) -> dict[str, Any]:
    network = model.model
    network.generation_config.eos_token_id = None
    started, tokens = time.monotonic(), 0
    with torch.inference_mode():
        for first in range(0, len(prompts), rows // SAMPLES):
            part = prompts[first : first + rows // SAMPLES]
            width = max(map(len, part))
            ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in part])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in part])
            found = network.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=SAMPLES, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0,
            )  # fmt: skip
            tokens += found[:, width:].numel()
    return {"seconds": time.monotonic() - started, "tokens": tokens}


def same_greedy(prompts: list[tuple[int, ...]]) -> bool:
    model = open_local(PACKAGED, dtype="float32")
    model.stop_tokens = frozenset()
    drawn = InProcess(model).generate(prompts, Sampling(24), seeds=[[0] for _ in prompts])
    model.model.generation_config.eos_token_id = None
    with torch.inference_mode():
        for prompt, [one] in zip(prompts, drawn, strict=True):
            ids = torch.tensor([prompt])
            plain = model.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
            )
            if tuple(plain[0, len(prompt) :].tolist()) != one.tokens:
                return False
    return True


def one_run(job: dict[str, Any]) -> None:
    """In a process of its own, so that its peak memory is its own."""
    model = open_local(PACKAGED, dtype=job["dtype"])
    prompts = [model.prompt_tokens(chat) for chat in chats(model, job["prompts"])]
    if job["who"] == "check":
        found: dict[str, Any] = {"same": same_greedy(prompts[:4])}
    else:
        found = {"ours": ours, "theirs": theirs}[job["who"]](model, prompts, job["rows"])
    print(json.dumps(found | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}))


def run(**job: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "tokens" in found:
        found["tokens_per_second"] = found["tokens"] / found["seconds"]
    return job | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=64, help="Replies that ours draws at once.")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rollouts_vs_generate.json")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        one_run(json.loads(given.job))
        return
    model_folder(PACKAGED)  # converted before anything is timed
    check = run(who="check", prompts=4, dtype=given.dtype)
    trials = [run(who="theirs", prompts=max(2, given.prompts // 8), dtype=given.dtype, rows=rows) for rows in PEER_ROWS]
    suits = max(trials, key=lambda one: one["tokens_per_second"])["rows"]
    ours = run(who="ours", prompts=given.prompts, dtype=given.dtype, rows=given.rows)
    theirs = run(who="theirs", prompts=given.prompts, dtype=given.dtype, rows=suits)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": installed_versions(),
        "same_greedy_tokens": check["same"],
        "peer_trials": trials,
        "runs": [ours, theirs],
        "speed": ours["tokens_per_second"] / theirs["tokens_per_second"],
        "memory": ours["peak_gb"] / theirs["peak_gb"],
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    for one in (*trials, ours, theirs):
        of = f"{one['who']:7} {one['prompts']:3} prompts, {one['rows']:3} rows"
        print(f"{of}  {one['tokens_per_second']:7.1f} tokens/s  {one['peak_gb']:.1f} GB")
    print(f"speed {result['speed']:.2f}x, memory {result['memory']:.2f}x, greedy tokens the same: {check['same']}")
    if not check["same"]:
        sys.exit("the replies differ")


if __name__ == "__main__":
    main()
