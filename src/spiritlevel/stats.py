"""Rates, paired changes and verdicts: how sure the counts of an evaluation let you be.

Pure functions over counts and booleans. A "hit" is whatever the caller counts, usually a bad outcome.
Rates and differences are shares (0.05 is five points); confidence is two-sided unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import bdtr, ndtri

Verdict = Literal["pass", "fail", "not enough data"]


@dataclass(frozen=True)
class Rate:
    """`hits` out of `n`, with the two-sided interval `low`..`high` at `confidence`."""

    hits: int
    n: int
    low: float
    high: float
    confidence: float

    @property
    def value(self) -> float:
        """The observed share, nan when nothing was counted."""
        return self.hits / self.n if self.n else math.nan


@dataclass(frozen=True)
class PairedChange:
    """The same `n` items before and after: three cells of the 2x2 table, the change and how sure it is.

    `difference` is rate after minus rate before, in [-1, 1]; `p_exact` and `p_mid` are McNemar's two-sided p.
    """

    n: int
    only_before: int
    only_after: int
    both: int
    difference: float
    low: float
    high: float
    confidence: float
    p_exact: float
    p_mid: float


def wilson(hits: int, n: int, confidence: float = 0.95) -> Rate:
    """The Wilson score interval for `hits` out of `n` (Wilson 1927, JASA 22:209).

    (0, 1) when n is 0. ValueError unless 0 <= hits <= n and 0 < confidence < 1.
    """
    z = _normal_quantile(confidence)
    if not 0 <= hits <= n:
        raise ValueError(f"hits is {hits} and n is {n}, expected 0 <= hits <= n: count each item once")
    if n == 0:
        return Rate(hits, n, 0.0, 1.0, confidence)
    share, shrink = hits / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / shrink
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return Rate(hits, n, low, high, confidence)


def paired_change(before: Sequence[bool], after: Sequence[bool], confidence: float = 0.95) -> PairedChange:
    """How the rate of hits changed between two runs over the same items, in the same order.

    McNemar's exact and mid-p tests, and Newcombe's interval. With no pairs the difference is nan, the
    interval (-1, 1) and p 1. ValueError on unequal lengths, on a result that is neither True nor False, or
    unless 0 < confidence < 1.
    """
    n = len(before)
    if len(after) != n:
        raise ValueError(f"before has {n} results and after {len(after)}: pass one of each for every item")
    cells = Counter(zip(before, after, strict=True))
    both, neither = cells[True, True], cells[False, False]
    only_before, only_after = cells[True, False], cells[False, True]
    if both + neither + only_before + only_after != n:
        raise ValueError("a result is neither True nor False: leave items without a result out of both runs")
    difference = (only_after - only_before) / n if n else math.nan
    low, high = _newcombe(both, only_before, only_after, neither, confidence)
    p_exact, p_mid = _mcnemar(only_before, only_after)
    return PairedChange(n, only_before, only_after, both, difference, low, high, confidence, p_exact, p_mid)


def minimum_detectable_change(n: int, discordant: float, power: float = 0.8, confidence: float = 0.95) -> float:
    """The smallest absolute change that `n` pairs detect with `power`, at most 1.

    `discordant` is the share of pairs whose two results differ. Normal approximation for McNemar's test
    (Connor 1987, Biometrics 43:207), n d^2 = (z_c sqrt(s) + z_p sqrt(s - d^2))^2, solved for d; close to
    2.8 sqrt(s/n) at the defaults. A change of d needs a share of at least d, so s is the larger of
    `discordant` and d: few discordant pairs don't pass for a sharp test.
    ValueError unless n >= 0, 0 <= discordant <= 1, 0.5 <= power < 1 and 0 < confidence < 1.
    """
    z = _normal_quantile(confidence)
    if n < 0 or not 0 <= discordant <= 1 or not 0.5 <= power < 1:
        raise ValueError(
            f"n is {n}, discordant {discordant} and power {power}, "
            "expected n >= 0, discordant in [0, 1] and power in [0.5, 1)"
        )
    if n <= z * z:  # even if every pair changed the same way
        return 1.0
    z_power = float(ndtri(power))
    # d = sqrt(s) g solves Connor's equation for every s, and s = d then gives d = g^2
    g = (math.sqrt(n) * z + z_power * math.sqrt(n + z_power**2 - z * z)) / (n + z_power**2)
    return min(1.0, g * max(math.sqrt(discordant), g))


def verdict(low: float, high: float, limit: float) -> Verdict:
    """Whether a quantity that should stay at or under `limit` does, given its interval in the same unit."""
    if high <= limit:
        return "pass"
    return "fail" if low > limit else "not enough data"


def one_sided(confidence: float) -> float:
    """The two-sided confidence whose interval ends are one-sided bounds at `confidence`: 0.9 gives 0.8.

    ValueError unless 0.5 < confidence < 1.
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"one-sided confidence is {confidence}, expected more than 0.5 and less than 1")
    return 2 * confidence - 1


def _normal_quantile(confidence: float) -> float:
    """z with a standard normal between -z and z at probability `confidence`."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a share between 0 and 1, such as 0.95")
    return -float(ndtri((1 - confidence) / 2))


def _newcombe(both: int, only_before: int, only_after: int, neither: int, confidence: float) -> tuple[float, float]:
    """Limits of (after - before): Newcombe 1998, Stat Med 17:2635, method 10.

    Each end adds the distances to the two Wilson limits as correlated errors, with phi's numerator moved
    n/2 towards 0 when it is positive. (-1, 1) without pairs.
    """
    n = both + only_before + only_after + neither
    before = wilson(both + only_before, n, confidence)
    after = wilson(both + only_after, n, confidence)
    if n == 0:
        return -1.0, 1.0
    numerator: float = both * neither - only_before * only_after
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)
    margins = before.hits * (n - before.hits) * after.hits * (n - after.hits)
    phi = numerator / math.sqrt(margins) if margins else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = (only_after - only_before) / n
    low = difference - distance(after.value - after.low, before.high - before.value)
    high = difference + distance(after.high - after.value, before.value - before.low)
    return max(-1.0, low), min(1.0, high)


def _mcnemar(only_before: int, only_after: int) -> tuple[float, float]:
    """McNemar's exact conditional p and mid-p, two-sided: Fagerland et al. 2013, BMC Med Res Methodol 13:91.

    The mid-p counts the outcomes exactly as extreme as the observed one at half. Both are 1 without
    discordant pairs.
    """
    fewer, discordant = min(only_before, only_after), only_before + only_after
    if discordant == 0:
        return 1.0, 1.0
    tail = float(bdtr(fewer, discordant, 0.5))
    tail_beyond = float(bdtr(fewer - 1, discordant, 0.5)) if fewer else 0.0
    if only_before == only_after:  # one outcome, not two, is exactly as extreme
        return 1.0, 1 - (tail - tail_beyond) / 2
    return min(1.0, 2 * tail), tail + tail_beyond
