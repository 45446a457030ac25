"""A planted reward, which anybody can check by eye; the prompts to learn it on, and others to judge by.

A reply should speak to its reader: half a point for saying "you" or "your", a whole one for saying it twice. The base
says it seldom enough to leave room and often enough to find it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spiritlevel.charter import load_charter, read_probes
from spiritlevel.chat import Chat, user
from spiritlevel.models import Fork, InProcess, LocalModel, Sampling
from spiritlevel.train import function_reward, using_adapter

CHARTER = Path(__file__).parent.parent / "examples" / "accounting" / "charter.yaml"
NEW_TOKENS = 16
_READER = re.compile(r"\b(you|your|yours)\b", re.IGNORECASE)


def speaks_to_the_reader(chat: Chat, reply: str) -> float:
    return min(2, len(_READER.findall(reply))) / 2


REWARD = function_reward(speaks_to_the_reader, name="speaks_to_the_reader")


def prompts(held_out: int) -> tuple[list[Chat], list[Chat]]:
    """The train probes of the accounting charter in a fixed random order: those to learn on, and the held-out ones."""
    probes = read_probes(load_charter(CHARTER), "train")
    order = np.random.default_rng(0).permutation(len(probes))
    chats: list[Chat] = [[user(probes[index].prompt)] for index in order]
    return chats[held_out:], chats[:held_out]


@dataclass(frozen=True)
class Measured:
    """Means over replies with their standard errors. kl: log π/π_ref summed over a reply's tokens, in nats, of what π
    drew: an unbiased estimate of the divergence of a reply."""

    reward: float
    reward_error: float
    kl: float
    kl_error: float
    length: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(policy: LocalModel, chats: Sequence[Chat], *, samples: int, seed: int) -> Measured:
    """What `policy`, a base with an adapter, is worth on `chats`: `samples` replies each, at temperature 1."""
    asked = [policy.prompt_tokens(chat) for chat in chats]
    seeds = np.random.SeedSequence(seed).generate_state(len(chats) * samples, np.uint64).reshape(len(chats), -1)
    drawn = InProcess(policy).generate(asked, Sampling(NEW_TOKENS, 1.0), seeds=seeds.tolist())
    forks = [Fork(prompt, (one.tokens,)) for prompt, group in zip(asked, drawn, strict=True) for one in group]
    with using_adapter(policy.model, None):
        reference = policy.token_logprobs(forks)
    replies = [one for group in drawn for one in group]
    kl = [sum(one.logprobs) - sum(base) for one, base in zip(replies, reference, strict=True)]
    rewards = [
        speaks_to_the_reader(chat, policy.reply_text(one.tokens))
        for chat, group in zip(chats, drawn, strict=True)
        for one in group
    ]
    return Measured(*_mean(rewards), *_mean(kl), length=float(np.mean([len(one.tokens) for one in replies])))


def _mean(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values) / len(values) ** 0.5)
