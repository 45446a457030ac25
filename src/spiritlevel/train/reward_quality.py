"""How good a reward model is on pairs it has not seen, and whether it is more than a judge of length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from spiritlevel.data import Preference
from spiritlevel.errors import SpiritLevelError
from spiritlevel.models import RewardModel, reward_fork
from spiritlevel.stats import Rate, wilson
from spiritlevel.train.objectives.pairwise import pair_fork

BINS = 10


@dataclass(frozen=True)
class RewardQuality:
    """accuracy: of the pairs, those whose chosen reply has the higher reward (of ties, half); length_accuracy: the same
    of a judge that takes the longer reply. calibration_error: the expected calibration error of σ(difference) in ten
    bins of equal size; brier: its mean squared error. length_correlation: Spearman's, of reward and length over all
    replies.
    """

    accuracy: Rate
    length_accuracy: Rate
    calibration_error: float
    brier: float
    length_correlation: float

    def as_json(self) -> dict[str, Any]:
        rates = {"accuracy": self.accuracy, "length_accuracy": self.length_accuracy}
        return asdict(self) | {name: asdict(rate) | {"value": rate.value} for name, rate in rates.items()}


def reward_quality(
    model: RewardModel,
    records: Sequence[Preference],
    *,
    confidence: float = 0.95,
    token_budget: int = 4096,
    on_progress: Callable[[int], None] | None = None,
) -> RewardQuality:
    """Judge `model` on pairs that it was not trained on. Raises SpiritLevelError if there are none."""
    if not records:
        raise SpiritLevelError("there are no pairs to judge the reward model by")
    forks = [pair_fork(record, model) for record in records]
    asked = [reward_fork(fork, model.pad_token) for fork in forks]
    rewards = np.array(model.rewards(asked, token_budget=token_budget, on_progress=on_progress))
    lengths = np.array([[len(reply) for reply in fork.continuations] for fork in forks])
    differences = (rewards[:, 0] - rewards[:, 1]) * model.std  # in the units that were trained
    correlation = spearmanr(rewards.ravel(), lengths.ravel()).statistic
    return RewardQuality(
        accuracy=_won(differences, confidence),
        length_accuracy=_won(lengths[:, 0] - lengths[:, 1], confidence),
        calibration_error=calibration_error(differences),
        brier=float(np.mean((1 - _sigmoid(differences)) ** 2)),
        length_correlation=0.0 if np.isnan(correlation) else float(correlation),
    )


def calibration_error(differences: np.ndarray[Any, Any], bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015; bins of equal size: Nixon et al. 2019, arXiv:1904.01685) of the
    probability σ(|d|) that the reply with the higher reward is the chosen one.

    differences: reward of the chosen reply less that of the rejected one, a pair each.
    """
    confidence, right = _sigmoid(np.abs(differences)), (differences > 0) + 0.5 * (differences == 0)
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(p) * abs(confidence[p].mean() - right[p].mean()) for p in parts) / len(order))


def _won(differences: np.ndarray[Any, Any], confidence: float) -> Rate:
    won = int((differences > 0).sum() + (differences == 0).sum() // 2)
    return wilson(won, len(differences), confidence)


def _sigmoid(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(0.5 * (1 + np.tanh(values / 2)))
