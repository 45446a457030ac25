"""Iterations of PPO with Spirit Level: the same job and the same figures as `trl_ppo.py`."""

import json
import sys
import tempfile
import time
from pathlib import Path

from figures import TokenCount, peak_gb

from spiritlevel.models import open_local
from spiritlevel.store import installed_versions
from spiritlevel.train import (
    PPO,
    ActorCritic,
    LoraSettings,
    OnlineConfig,
    SharedReward,
    TrainConfig,
    add_lora,
    model_reward,
    train_online,
)

job = json.load(sys.stdin)
base = open_local(job["model"], dtype="bfloat16")
policy = ActorCritic.on(add_lora(base, LoraSettings(), seed=job["seed"]), LoraSettings(), seed=job["seed"] + 1)
policy.stop_tokens = frozenset()  # every reply has its full length
reward = SharedReward.beside(policy, base.folder, Path(job["folder"], "adapter"))
count = TokenCount(policy.model)
online = OnlineConfig(
    job["iterations"], prompts=len(job["prompts"]), samples=job["samples"], max_new_tokens=job["new_tokens"]
)
config = TrainConfig(
    job["learning_rate"], epochs=job["epochs"], batch_size=len(job["prompts"]) // job["minibatches"], warmup=0.0,
    seed=job["seed"], token_budget=job["token_budget"], save_seconds=1e9,
)  # fmt: skip
source = model_reward(reward, policy=policy)
with tempfile.TemporaryDirectory() as folder:
    started = time.monotonic()
    history = train_online(policy, PPO(), job["prompts"], source, online, config, Path(folder))
    ended = time.monotonic()
steps = len(history) // job["iterations"]
json.dump(
    {
        "seconds": ended - started,
        "peak_gb": peak_gb(),
        "tokens": count.tokens,
        # Of an iteration's first step.
        "history": [{name: row[name] for name in ("ratio", "kl", "reward", "entropy")} for row in history[::steps]],
        "versions": installed_versions(),
    },
    sys.stdout,
)
