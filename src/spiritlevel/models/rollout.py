"""Rollouts: replies that a policy draws to learn from, with the probabilities they had when they were drawn.

An engine draws them. There are two: the model that is trained, in this process, and a vLLM server (`vllm.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from spiritlevel.models.fork import Fork
from spiritlevel.models.local import LocalModel
from spiritlevel.models.sampling import Sampling, decode, plan_prompts


@dataclass(frozen=True)
class Rollout:
    """tokens: with the stop token, if it came (`finished`); logprobs: of each under the policy that drew it, at the
    temperature it was drawn with."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class RolloutEngine(Protocol):
    """Everything by token ids: a text that is tokenised again may give other ones."""

    def generate(
        self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, *, seeds: Sequence[Sequence[int]]
    ) -> list[list[Rollout]]:
        """For each prompt one rollout a seed."""

    def logprobs(self, forks: Sequence[Fork], *, temperature: float) -> list[list[float]]:
        """For each fork the log-probabilities of all its scored tokens, in order."""

    def update_weights(self, model: LocalModel) -> None:
        """Draw from now on as this model does."""

    def close(self) -> None: ...


class InProcess:
    """Draws from the model itself, so that it is never behind."""

    def __init__(self, model: LocalModel, *, rows: int = 64) -> None:
        self.model, self.rows = model, rows

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        *,
        seeds: Sequence[Sequence[int]],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Rollout]]:
        self.model.check_room(prompts, sampling.max_new_tokens)
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        for group in self._plan(prompts, seeds):
            completions = decode(
                self.model.model,
                [prompts[index] for index in group for _ in seeds[index]],
                sampling,
                stop_tokens=self.model.stop_tokens,
                pad_token=self.model.pad_token,
                seeds=[seed for index in group for seed in seeds[index]],
                keep_drawn=True,
                share_start=True,
            )
            drawn = iter(completions)
            for index in group:
                for completion in islice(drawn, len(seeds[index])):
                    tokens, logprobs = zip(*completion.drawn, strict=True)
                    rollouts[index].append(Rollout(tokens, logprobs, completion.finished))
                    if on_progress is not None:
                        on_progress(1)
        return rollouts

    def _plan(self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[Sequence[int]]) -> list[list[int]]:
        """Prompts that are drawn together: the samples of one stay together, so that it is computed once."""
        batches: list[list[int]] = []
        for family in plan_prompts(prompts):
            batch: list[int] = []
            for index in family:
                if batch and sum(len(seeds[member]) for member in (*batch, index)) > self.rows:
                    batches.append(batch)
                    batch = []
                batch.append(index)
            batches.append(batch)
        return batches

    def logprobs(self, forks: Sequence[Fork], *, temperature: float, token_budget: int = 4096) -> list[list[float]]:
        return self.model.token_logprobs(forks, temperature=temperature, token_budget=token_budget)

    def update_weights(self, model: LocalModel) -> None:
        self.model = model

    def close(self) -> None:
        """Nothing to release."""
