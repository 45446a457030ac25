"""Perplexity on neutral text: what a training cost the model in general."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from spiritlevel.models import Fork, LocalModel, score_forks


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood a token, and each passage's (nats summed, tokens)."""

    value: float
    passages: tuple[tuple[float, int], ...]


def neutral_passages() -> list[str]:
    """Short encyclopaedic passages written for this project; none concerns any charter's subject."""
    text = files("spiritlevel.evals").joinpath("neutral.txt").read_text(encoding="utf-8")
    return [passage.strip() for passage in text.split("\n\n") if passage.strip()]


def perplexity(model: LocalModel, passages: Sequence[str], *, token_budget: int = 2048) -> Perplexity:
    """Every passage is scored from its second token on, given the first, without chat template."""
    tokens = [model.tokenizer(passage, add_special_tokens=False)["input_ids"] for passage in passages]
    forks = [Fork(tuple(ids[:1]), (tuple(ids[1:]),)) for ids in tokens]
    sums = score_forks(model.model, forks, pad_token=model.pad_token, token_budget=token_budget)
    parts = tuple((-values[0], fork.scored) for values, fork in zip(sums, forks, strict=True))
    total = sum(nats for nats, _ in parts) / sum(count for _, count in parts)
    return Perplexity(math.exp(total), parts)


def perplexity_ratio(before: Perplexity, after: Perplexity, confidence: float) -> tuple[float, float, float]:
    """after/before with an interval: the paired differences of passages, weighted by tokens, as a normal mean of
    a ratio estimator (Cochran 1977, §6.4) on the log scale."""
    from scipy.stats import t

    counts = [count for _, count in before.passages]
    differences = [new - old for (old, _), (new, _) in zip(before.passages, after.passages, strict=True)]
    n, mean_count = len(counts), sum(counts) / len(counts)
    ratio = sum(differences) / sum(counts)
    residuals = [difference - ratio * count for difference, count in zip(differences, counts, strict=True)]
    error = math.sqrt(sum(residual**2 for residual in residuals) / (n - 1) / n) / mean_count if n > 1 else math.inf
    spread = float(t.ppf((1 + confidence) / 2, n - 1)) * error if n > 1 else math.inf
    return math.exp(ratio), math.exp(ratio - spread), math.exp(ratio + spread)
