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


def perplexity_interval(measured: Perplexity, confidence: float) -> tuple[float, float]:
    """Where the perplexity of all text like these passages lies."""
    _, low, high = _nats_per_token(measured.passages, confidence)
    return math.exp(low), math.exp(high)


def perplexity_ratio(before: Perplexity, after: Perplexity, confidence: float) -> tuple[float, float, float]:
    """after/before with an interval from the paired differences of the passages."""
    pairs = zip(before.passages, after.passages, strict=True)
    mean, low, high = _nats_per_token([(new - old, count) for (old, count), (new, _) in pairs], confidence)
    return math.exp(mean), math.exp(low), math.exp(high)


def _nats_per_token(parts: Sequence[tuple[float, int]], confidence: float) -> tuple[float, float, float]:
    """Σ nats / Σ tokens over passages, with the interval of a ratio estimator (Cochran 1977, §6.4)."""
    from scipy.stats import t

    n, tokens = len(parts), sum(count for _, count in parts)
    ratio = sum(nats for nats, _ in parts) / tokens
    if n < 2:
        return ratio, -math.inf, math.inf
    residuals = [nats - ratio * count for nats, count in parts]
    error = math.sqrt(sum(residual**2 for residual in residuals) / (n - 1) / n) / (tokens / n)
    spread = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    return ratio, ratio - spread, ratio + spread
