"""Learning from rollouts: draw replies, score them, take a few optimiser steps on them, and again.

The optimiser step, the schedule and the checkpoint are those of `loop.py`; only where examples come from differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spiritlevel.chat import Chat
from spiritlevel.errors import SpiritLevelError, check_setting
from spiritlevel.models import Fork, InProcess, LocalModel, Rollout, RolloutEngine, Sampling
from spiritlevel.train.actor_critic import ActorCritic, using_adapter
from spiritlevel.train.adapters import fused_lora
from spiritlevel.train.batches import epoch_batches
from spiritlevel.train.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from spiritlevel.train.memory import Checkpointing, gradient_checkpointing, needs_checkpointing
from spiritlevel.train.objectives.policy import Batch, Experience, PolicyObjective
from spiritlevel.train.processes import first_says, shared_out
from spiritlevel.train.rewards import Answered, RewardSource
from spiritlevel.train.sharding import sharding_is_asked_for
from spiritlevel.train.step import StepMetrics, Stepper, TrainConfig, stop_if_diverged


@dataclass(frozen=True)
class OnlineConfig:
    """An iteration draws `samples` replies to each of `prompts` prompts and learns from them.

    In the TrainConfig beside it, `epochs` counts the passes over an iteration's rollouts and `batch_size` the prompts
    of an optimiser step, with all their samples. unfinished_reward: instead of the score of a reply that was cut at
    `max_new_tokens` (Ouyang et al. give -1); None: such a reply is scored as it stands.
    """

    iterations: int
    prompts: int = 16
    samples: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    unfinished_reward: float | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "prompts", "samples", "max_new_tokens"):
            check_setting(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        check_setting("temperature", self.temperature, self.temperature > 0, "a number above 0")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature)


def train_online(
    model: LocalModel,
    objective: PolicyObjective,
    chats: Sequence[Chat],
    reward: RewardSource,
    online: OnlineConfig,
    config: TrainConfig,
    folder: Path,
    *,
    engine: RolloutEngine | None = None,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> list[StepMetrics]:
    """Train the policy in place and return the metrics of every optimiser step.

    model: a policy with a LoRA adapter, whose base is the reference (an `ActorCritic` for PPO). A call with the same
    arguments after a kill goes on at the last kept iteration and ends with the same weights. Several processes share
    the drawing, the rewards and every step, and all see the whole experience; the first tells and keeps.
    """
    _check(model, objective, online, config)
    prompts = _prompts(model, chats, online, config)
    steps = config.epochs * -(-online.prompts // config.batch_size)
    stepper = Stepper(model, objective, config, online.iterations * steps)
    mark = fingerprint(objective, [prompts, repr(online), reward.digest], config, model)
    history = load_checkpoint(folder, mark, stepper.optimizer)
    engine = engine or InProcess(model)
    saved_at = time.monotonic()
    with fused_lora(model.model), _at_temperature(model, online.temperature):
        on = needs_checkpointing(model, _setting(model, config), _longest(prompts, online, config), config.token_budget)
        for iteration in range(len(history) // steps, online.iterations):
            chosen = _prompts_of(iteration, len(chats), online.prompts, config.seed)
            if stepper.accelerator.is_main_process:
                engine.update_weights(model)  # one tells a server; in-process engines draw from the model itself
            rollouts = _draw(engine, [prompts[index] for index in chosen], online, config.seed, iteration)
            experience, told = gather(
                model, objective, [chats[i] for i in chosen], [prompts[i] for i in chosen], rollouts, reward, online,
                history,
            )  # fmt: skip
            with gradient_checkpointing(model, on=on):
                for epoch in range(config.epochs):
                    for batch in _batches(len(experience), config, iteration, epoch):
                        metrics = stepper.step(len(history), [experience[index] for index in batch])
                        history.append(metrics | told | {"iteration": iteration + 1})
                        stop_if_diverged(history, folder)
                        if on_step is not None and stepper.accelerator.is_main_process:
                            on_step(history[-1])
            if first_says(time.monotonic() - saved_at >= config.save_seconds) or iteration + 1 == online.iterations:
                save_checkpoint(folder, mark, stepper.optimizer, history)
                saved_at = time.monotonic()
    return history


def gather(
    model: LocalModel,
    objective: PolicyObjective,
    chats: Sequence[Chat],
    prompts: Sequence[tuple[int, ...]],
    rollouts: Sequence[Sequence[Rollout]],
    reward: RewardSource,
    online: OnlineConfig,
    history: Sequence[StepMetrics],
) -> tuple[list[Experience], StepMetrics]:
    """What is learnt from in one iteration, one `Experience` a prompt, and the iteration's metrics."""
    forks = [Fork(p, tuple(r.tokens for r in drawn)) for p, drawn in zip(prompts, rollouts, strict=True)]
    flat = [rollout for drawn in rollouts for rollout in drawn]
    scores = _scores(model, chats, prompts, rollouts, reward, online)
    lengths = [len(rollout.tokens) for rollout in flat]
    logprobs = _padded([rollout.logprobs for rollout in flat])
    mask = torch.arange(logprobs.shape[1]) < torch.tensor(lengths)[:, None]
    zero = torch.zeros_like(logprobs)
    batch = Batch(
        scores=torch.tensor(scores, dtype=torch.float64),
        group=torch.arange(len(rollouts)).repeat_interleave(torch.tensor([len(drawn) for drawn in rollouts])),
        mask=mask,
        logprobs=logprobs,
        reference_logprobs=_reference(model, forks, lengths, online) if objective.needs_reference else logprobs,
        values=_values(model, forks, lengths) if objective.needs_values else zero,
    )
    found = objective.advantages(batch, history)
    fields = {
        "logprobs": logprobs,
        "reference_logprobs": batch.reference_logprobs,
        "values": batch.values,
        "advantages": found.advantages,
        "returns": found.returns,
    }
    experience = []
    for group, fork in enumerate(forks):
        rows = batch.group == group
        own: dict[str, Any] = {name: field[rows][mask[rows]] for name, field in fields.items()}
        experience.append(Experience(fork, **own))
    # Of a reply: the sum over its tokens, and the mean of that.
    divergence = {"kl": float(batch.kl.sum(1).mean())} if objective.needs_reference else {}
    return experience, _told(batch, flat) | divergence | found.metrics


def _told(batch: Batch, rollouts: Sequence[Rollout]) -> StepMetrics:
    tokens = int(batch.mask.sum())
    spread = torch.stack(
        [batch.scores[batch.group == group].std(correction=0) for group in range(int(batch.group.max()) + 1)]
    )
    return {
        "reward": float(batch.scores.mean()),
        "reward_std": float(batch.scores.std(correction=0)),
        # Of what was drawn: an unbiased estimate of the entropy of a token.
        "entropy": -float(batch.logprobs[batch.mask].sum()) / tokens,
        "length": tokens / len(rollouts),
        "finished": sum(rollout.finished for rollout in rollouts) / len(rollouts),
        "groups_without_signal": float((spread == 0).double().mean()),
    }


def _scores(
    model: LocalModel,
    chats: Sequence[Chat],
    prompts: Sequence[tuple[int, ...]],
    rollouts: Sequence[Sequence[Rollout]],
    reward: RewardSource,
    online: OnlineConfig,
) -> list[float]:
    answered = []
    for chat, prompt, drawn in zip(chats, prompts, rollouts, strict=True):
        for rollout in drawn:
            fork = Fork(prompt, (rollout.tokens,))
            answered.append(Answered(chat, model.reply_text(rollout.tokens), fork, rollout.finished))
    scores = shared_out(reward, answered)
    if online.unfinished_reward is None:
        return scores
    unfinished = online.unfinished_reward
    return [score if one.finished else unfinished for score, one in zip(scores, answered, strict=True)]


def _reference(model: LocalModel, forks: Sequence[Fork], lengths: Sequence[int], online: OnlineConfig) -> Tensor:
    """log π_ref of every token: of the base, with the adapter off."""
    with using_adapter(model.model, None):
        tokens = shared_out(partial(model.token_logprobs, temperature=online.temperature), forks)
    return _padded(_split(tokens, lengths))


def _values(model: LocalModel, forks: Sequence[Fork], lengths: Sequence[int]) -> Tensor:
    if not isinstance(model, ActorCritic):
        raise TypeError("this objective needs an ActorCritic")
    return _padded(_split(shared_out(model.values, forks), lengths))


def _split(tokens: Sequence[Sequence[float]], lengths: Sequence[int]) -> list[list[float]]:
    """The values of each fork's tokens, cut into its continuations."""
    flat = [value for values in tokens for value in values]
    ends = np.cumsum(lengths).tolist()
    return [flat[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    return pad_sequence([torch.tensor(row, dtype=torch.float64) for row in rows], batch_first=True)


def _draw(
    engine: RolloutEngine, prompts: Sequence[tuple[int, ...]], online: OnlineConfig, seed: int, iteration: int
) -> list[list[Rollout]]:
    count = len(prompts) * online.samples
    seeds = np.random.SeedSequence([seed, iteration]).generate_state(count, np.uint64).reshape(len(prompts), -1)

    def draw(mine: Sequence[tuple[tuple[int, ...], list[int]]]) -> list[list[Rollout]]:
        return engine.generate([prompt for prompt, _ in mine], online.sampling, seeds=[seeds for _, seeds in mine])

    work = list(zip(prompts, seeds.tolist(), strict=True))
    return shared_out(draw, work, by_first=first_says(not isinstance(engine, InProcess)))


def _prompts_of(iteration: int, count: int, size: int, seed: int) -> list[int]:
    """The prompts of an iteration: without repeats until all have had their turn, then in another order."""
    first = iteration * size
    epochs: dict[int, Any] = {}
    chosen = []
    for place in range(first, first + size):
        epoch, index = divmod(place, count)
        if epoch not in epochs:
            epochs[epoch] = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
        chosen.append(int(epochs[epoch][index]))
    return chosen


def _check(model: LocalModel, objective: PolicyObjective, online: OnlineConfig, config: TrainConfig) -> None:
    if sharding_is_asked_for(config.shard):
        raise SpiritLevelError(
            "learning from rollouts can't shard weights: a reply is drawn with a whole model",
            remedy="Run it on several processes without sharding.",
        )
    if online.samples < 2 and not objective.needs_values:
        raise SpiritLevelError(
            f"{objective.name} compares the samples of a prompt, and there is one", remedy="Draw two or more."
        )
    if isinstance(model, ActorCritic) and config.checkpointing == "on":
        raise SpiritLevelError(
            "PPO's two adapters don't work with gradient checkpointing",
            remedy="Leave --checkpointing out, and lower the token budget if memory is short.",
        )


def _setting(model: LocalModel, config: TrainConfig) -> Checkpointing:
    """A checkpointed layer computes again in the backward pass, when another adapter may be active."""
    return "off" if isinstance(model, ActorCritic) else config.checkpointing


def _longest(prompts: Sequence[tuple[int, ...]], online: OnlineConfig, config: TrainConfig) -> list[list[Fork]]:
    """The heaviest batch that may come: the longest prompt, all of its samples as long as they can be."""
    drawn = ((0,) * online.max_new_tokens,) * online.samples
    return [[Fork(max(prompts, key=len), drawn)] * config.batch_size]


@contextmanager
def _at_temperature(model: LocalModel, temperature: float) -> Iterator[None]:
    """While this lasts, the model's log-probabilities are those of sampling at this temperature."""
    usual, model.temperature = model.temperature, temperature
    try:
        yield
    finally:
        model.temperature = usual


def _batches(count: int, config: TrainConfig, iteration: int, epoch: int) -> list[list[int]]:
    """A fresh order every time."""
    return epoch_batches([""] * count, config.batch_size, seed=config.seed + iteration, epoch=epoch)


def _prompts(
    model: LocalModel, chats: Sequence[Chat], online: OnlineConfig, config: TrainConfig
) -> list[tuple[int, ...]]:
    if not chats:
        raise SpiritLevelError("there are no prompts to learn from", remedy="Give at least one.")
    prompts = [model.prompt_tokens(chat) for chat in chats]
    model.check_room(prompts, online.max_new_tokens)
    longest = max(map(len, prompts)) + online.max_new_tokens
    if longest > config.max_length:
        raise SpiritLevelError(
            f"the longest prompt and {online.max_new_tokens} new tokens exceed {config.max_length} tokens ({longest})",
            remedy="Shorten the prompts, draw shorter replies, or raise --max-length.",
        )
    return prompts
