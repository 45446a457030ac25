"""How many of a preference file's labels may be wrong: two bounds, each with what it rests on.

Noise means labels turned round at random. From below: the same comparison judged twice. If a label is wrong with
probability e, independently, two verdicts disagree with probability d = 2e(1 − e), so e = (1 − √(1 − 2d)) / 2.
From above: no judge of the replies agrees with the labels more often than they are right, so whatever accuracy a any
model reaches on held-out pairs, at most 1 − a of the labels are wrong. The model here is plain, a Bradley-Terry
regression (Bradley & Terry 1952) on a dozen features of the replies' form, so the bound is wide. Neither sees a bias
that all labels share: annotators who always like the longer reply make no noise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from spiritlevel.checks import stance
from spiritlevel.data.contradictions import Comparison
from spiritlevel.data.trl import TrlRow
from spiritlevel.stats import Rate, wilson
from spiritlevel.store import digest_json

FOLDS = 5
FEWEST_PAIRS = 100


@dataclass(frozen=True)
class Share:
    """A share with its two-sided 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class NoiseBounds:
    """disagreement: of all two verdicts on one comparison, those that differ; None without a repeated comparison.
    agreement: of the held-out pairs, those whose label a model of the replies' form predicts; None below
    `FEWEST_PAIRS`."""

    disagreement: Rate | None
    agreement: Rate | None

    @property
    def from_repeats(self) -> Share | None:
        """The share of wrong labels that the repeats tell of. Copies of a row count as verdicts that agree, so where
        rows were copied this is too low."""
        if (rate := self.disagreement) is None:
            return None
        return Share(*map(flipped_share, (rate.value, rate.low, rate.high)))

    @property
    def at_most(self) -> Share | None:
        """The share of labels that the model gets wrong; of wrong labels there are not more."""
        if (rate := self.agreement) is None:
            return None
        return Share(1 - rate.value, 1 - rate.high, 1 - rate.low)


def noise_bounds(rows: Sequence[TrlRow], compared: Sequence[Comparison]) -> NoiseBounds:
    """Both bounds. They depend on the rows, not on their order."""
    agree = sum(math.comb(len(side), 2) for question in compared for side in (question.one, question.other))
    differ = sum(len(question.one) * len(question.other) for question in compared)
    repeats = wilson(differ, agree + differ) if agree + differ else None
    return NoiseBounds(repeats, form_judge(rows))


def flipped_share(disagreement: float) -> float:
    """e of d = 2e(1 − e), at most a half: beyond that labels would be no better than chance."""
    return (1 - math.sqrt(max(0.0, 1 - 2 * disagreement))) / 2


def form_judge(rows: Sequence[TrlRow]) -> Rate | None:
    """How often a model of the replies' form, fitted to the other folds, prefers what was chosen.

    All pairs of one prompt are in one fold. Pairs that differ in no feature are left out.
    """
    pairs = [row for row in rows if row.chosen is not None and row.rejected is not None and row.chosen != row.rejected]
    if len(pairs) < FEWEST_PAIRS:
        return None
    keyed = sorted(((digest_json(row.prompt), digest_json(row.parts), row) for row in pairs), key=lambda key: key[:2])
    folds = np.array([int(prompt[:8], 16) % FOLDS for prompt, _, _ in keyed])
    differences = np.stack([_features(row, row.chosen) - _features(row, row.rejected) for _, _, row in keyed])
    margins = np.zeros(len(keyed))
    for fold in range(FOLDS):
        held_out = folds == fold
        if held_out.any() and not held_out.all():
            margins[held_out] = differences[held_out] @ _fit(differences[~held_out])
    decided = margins[margins != 0]
    return wilson(int((decided > 0).sum()), len(decided)) if len(decided) else None


def _fit(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights w of P(chosen) = σ(w · difference), each feature scaled to mean square 1, with an L2 penalty of 1.

    No intercept: a judge that is shown the replies in the other order must say the opposite.
    """
    scale = np.sqrt((differences**2).mean(axis=0))
    scaled = differences / np.where(scale > 0, scale, 1.0)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = scaled @ weights
        value = np.logaddexp(0.0, -margins).sum() + weights @ weights / 2
        return float(value), weights - expit(-margins) @ scaled

    found = minimize(loss, np.zeros(scaled.shape[1]), jac=True, method="L-BFGS-B")
    weights: NDArray[np.float64] = found.x / np.where(scale > 0, scale, 1.0)
    return weights


_COUNTED = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (r"\n", r"[.!?](?:\s|$)", r"\?", r"!", r"^\s*(?:[-*•]|\d+[.)])\s", r"```|`[^`\n]+`", r"\d", r"[A-Z]")
)
_WORD: Callable[[str], list[str]] = re.compile(r"\w+").findall


def _features(row: TrlRow, reply: str | None) -> NDArray[np.float64]:
    """How long it is, what it is made of, how much it repeats itself and the prompt, and whether it declines."""
    text = reply or ""
    words = _WORD(text.casefold())
    distinct, asked = set(words), set(_WORD(row.prompt_text.casefold()))
    return np.array(
        [
            math.log1p(len(words)),
            len(text) / max(1, len(words)),
            *(math.log1p(len(pattern.findall(text))) for pattern in _COUNTED),
            len(distinct) / max(1, len(words)),
            len(distinct & asked) / max(1, len(distinct)),
            float(stance(text).declines),
        ]
    )
