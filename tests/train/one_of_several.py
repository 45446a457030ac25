"""Small trainings, alone or as one process of several: test_processes.py calls it with a folder and what to train.

A training is METHOD[+full][+tied][+shard][+off][+kill]: all weights and no adapter; a head tied to the embeddings;
sharded, if there are several processes; without checkpointed layers; and the first process killed past the half.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from spiritlevel.chat import Chat, user
from spiritlevel.data import Preference
from spiritlevel.models import LocalModel, RewardModel, open_local
from spiritlevel.store import ContentStore
from spiritlevel.train import (
    OBJECTIVES,
    ONLINE,
    ActorCritic,
    LoraSettings,
    OnlineConfig,
    TrainConfig,
    add_lora,
    function_reward,
    prepare_examples,
    train,
    train_online,
)
from spiritlevel.train.sharding import Sharded
from tiny import save_model

WORDS = ["the", "user", "in", "on", "hello", "as", "a", "and"]
RECORDS = [
    Preference.of(f"hello {WORDS[n % 8]} {n}", " ".join(WORDS[: 1 + n % 5]), " ".join(WORDS[n % 4 :]))
    for n in range(11)
]
LORA = LoraSettings(4, 8)


def letters(chat: Chat, reply: str) -> float:
    return sum(letter.isalpha() for letter in reply) / (1 + len(reply))


def kill(metrics: dict[str, float]) -> None:
    if metrics["step"] > metrics["steps"] / 2:
        os.kill(os.getpid(), signal.SIGKILL)


def on_records(method: str, options: set[str], base: LocalModel, config: TrainConfig, folder: Path) -> LocalModel:
    objective = OBJECTIVES[method](**{"beta": 0.1} if method in ("dpo", "kto") else {})
    examples = prepare_examples(base, objective, RECORDS, store=ContentStore(folder / "store"))
    student = RewardModel.on(base, seed=3) if method == "reward" else base
    student = student if "full" in options else add_lora(student, LORA, seed=7)
    train(student, objective, examples, config, folder, on_step=kill if "kill" in options else None)
    return student


def on_rollouts(method: str, options: set[str], base: LocalModel, config: TrainConfig, folder: Path) -> LocalModel:
    objective = ONLINE[method](**{"kl_weight": 0.05, "max_new_tokens": 6} if method == "grpo" else {})
    policy = add_lora(base, LORA, seed=7)
    policy = ActorCritic.on(policy, LORA, seed=8) if objective.needs_values else policy
    online = OnlineConfig(iterations=3, prompts=5, samples=3, max_new_tokens=6)
    chats = [[user(f"{word} {'and ' * n}")] for n, word in enumerate(WORDS)]
    reward = function_reward(letters, name="letters")
    train_online(policy, objective, chats, reward, online, config, folder, on_step=kill if "kill" in options else None)
    return policy


def cut_and_join(model: LocalModel, processes: int) -> None:
    """While it is cut a process holds its part, computes what one with the whole does, and has that again after."""
    weights = list(model.model.parameters())
    before = [weight.detach().clone() for weight in weights]
    forks = [model.fork([user(word)], WORDS[:2]) for word in WORDS[:3]]
    scores = model.score(forks).logprobs.detach()
    sharded = Sharded(model, processes)
    slices = list(model.model.parameters())
    assert [weight.numel() for weight in weights] == [0] * len(weights)
    assert sum(part.to_local().numel() for part in slices) == sum(whole.numel() for whole in before) / processes
    assert torch.allclose(sharded.compute(model.score, forks).logprobs, scores, atol=1e-5)
    sharded.join()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert torch.equal(model.score(forks).logprobs, scores)


def main(folder: Path, trainings: list[str]) -> None:
    rank, processes = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    tiny = {
        tied: save_model(folder / f"tiny-{rank}-{tied}", dtype=torch.float32, tie_word_embeddings=tied)
        for tied in (False, True)
    }
    PartialState(cpu=True)
    if processes > 1:
        cut_and_join(open_local(str(tiny[True]), dtype="float32"), processes)
    for training in trainings:
        method, *rest = training.split("+")
        options = set(rest)
        own = folder / training.removesuffix("+kill")
        base = open_local(str(tiny["tied" in options]), dtype="float32")
        config = TrainConfig(
            learning_rate=1e-2, epochs=2, batch_size=4 if method in OBJECTIVES else 2, token_budget=60, save_seconds=0,
            shard="shard" in options and processes > 1, checkpointing="off" if "off" in options else "auto",
        )  # fmt: skip
        trained = (on_records if method in OBJECTIVES else on_rollouts)(method, options, base, config, own)
        if PartialState().is_main_process:
            weights = {name: weight for name, weight in trained.model.named_parameters() if weight.requires_grad}
            save_file({name: weight.detach() for name, weight in weights.items()}, own / "weights.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
