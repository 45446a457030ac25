"""Intervals and tests against statsmodels, published numbers, direct sums, simulation and their own laws."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

from spiritlevel.stats import (
    PairedChange,
    minimum_detectable_change,
    one_sided,
    paired_change,
    verdict,
    wilson,
)

CONFIDENCES = [0.5, 0.8, 0.9, 0.95, 0.99, 0.999]
cells = st.tuples(*[st.integers(0, 60)] * 4)
filled_cells = cells.filter(any)
confidences = st.floats(0.01, 0.9999)


def change(both: int, only_before: int, only_after: int, neither: int, confidence: float = 0.95) -> PairedChange:
    before = [True] * (both + only_before) + [False] * (only_after + neither)
    after = [True] * both + [False] * only_before + [True] * only_after + [False] * neither
    return paired_change(before, after, confidence)


# --- one rate


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 59, 300, 1000, 100_000])
def test_wilson_equals_statsmodels(n: int, confidence: float) -> None:
    for hits in sorted({0, 1, n // 20, n // 3, n // 2, n - 1, n}):
        rate = wilson(hits, n, confidence)
        low, high = proportion_confint(hits, n, alpha=1 - confidence, method="wilson")
        assert rate.low == pytest.approx(low, abs=1e-12)
        assert rate.high == pytest.approx(high, abs=1e-12)
        assert rate.value == hits / n


def test_wilson_ends_are_exact() -> None:
    assert wilson(0, 37).low == 0.0
    assert wilson(37, 37).high == 1.0
    nothing = wilson(0, 0)
    assert (nothing.low, nothing.high) == (0.0, 1.0)
    assert math.isnan(nothing.value)


@given(st.integers(1, 5000), st.data(), confidences, confidences)
def test_wilson_laws(n: int, data: st.DataObject, one: float, other: float) -> None:
    hits = data.draw(st.integers(0, n))
    narrow, wide = (wilson(hits, n, c) for c in sorted((one, other)))
    assert 0 <= wide.low <= narrow.low <= hits / n <= narrow.high <= wide.high <= 1
    mirrored = wilson(n - hits, n, narrow.confidence)
    assert mirrored.low == pytest.approx(1 - narrow.high, abs=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_refuses_impossible_counts(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        wilson(hits, n)


@pytest.mark.parametrize("confidence", [-0.1, 0.0, 1.0, 95.0, math.nan])
def test_confidence_is_a_share(confidence: float) -> None:
    for call in (
        lambda: wilson(1, 2, confidence),
        lambda: paired_change([], [], confidence),
        lambda: minimum_detectable_change(100, 0.1, confidence=confidence),
        lambda: one_sided(confidence),
    ):
        with pytest.raises(ValueError, match="confidence is"):
            call()


def test_a_confidence_of_almost_one_stays_finite() -> None:
    rate = wilson(3, 10, 1 - 2**-53)
    assert 0 < rate.low < 0.3 < rate.high < 1


# --- a paired change: the table and the tests


def test_counts_the_four_cells() -> None:
    result = paired_change([True, True, False, False, True], [True, False, True, False, False])
    assert (result.n, result.both, result.only_before, result.only_after) == (5, 1, 2, 1)
    assert result.difference == pytest.approx(-0.2)
    assert result.confidence == 0.95
    arrays = paired_change(np.array([True, True, False]).tolist(), list(np.array([False, True, True])))
    assert (arrays.both, arrays.only_before, arrays.only_after) == (1, 1, 1)


def test_exact_mcnemar_equals_statsmodels() -> None:
    rng = np.random.default_rng(0)
    tables = [rng.integers(0, high, 4).tolist() for high in (3, 10, 100, 400) for _ in range(50)]
    for both, only_before, only_after, neither in [*tables, [9, 0, 0, 9], [0, 5, 5, 0], [0, 0, 40, 0]]:
        expected = mcnemar([[both, only_before], [only_after, neither]], exact=True).pvalue
        assert change(both, only_before, only_after, neither).p_exact == pytest.approx(expected, abs=1e-12)


def test_mid_p_equals_the_direct_sum() -> None:
    for discordant in range(1, 41):
        share = [Fraction(math.comb(discordant, k), 2**discordant) for k in range(discordant + 1)]
        for seen in range(discordant + 1):
            extremity = abs(2 * seen - discordant)
            more = sum(p for k, p in enumerate(share) if abs(2 * k - discordant) > extremity)
            equal = sum(p for k, p in enumerate(share) if abs(2 * k - discordant) == extremity)
            result = change(3, seen, discordant - seen, 4)
            assert result.p_exact == pytest.approx(float(more + equal), abs=1e-12)
            assert result.p_mid == pytest.approx(float(more + equal / 2), abs=1e-12)


def test_p_values_of_a_published_table() -> None:
    """Bentur et al. 2009 in Fagerland et al. 2013: 1 and 7 discordant of 21."""
    result = change(1, 1, 7, 12)
    assert result.p_exact == pytest.approx(0.0703, abs=5e-5)
    assert result.p_mid == pytest.approx(0.0391, abs=5e-5)


def test_no_discordant_pairs_is_no_evidence() -> None:
    result = change(5, 0, 0, 5)
    assert (result.difference, result.p_exact, result.p_mid) == (0.0, 1.0, 1.0)
    assert result.low < 0 < result.high


def test_no_pairs() -> None:
    result = paired_change([], [])
    assert math.isnan(result.difference)
    assert (result.n, result.low, result.high, result.p_exact, result.p_mid) == (0, -1.0, 1.0, 1.0, 1.0)


def test_refuses_what_is_not_paired() -> None:
    with pytest.raises(ValueError, match="before has 2 results and after 1"):
        paired_change([True, False], [True])
    with pytest.raises(ValueError, match="neither True nor False"):
        paired_change([True, None], [True, False])  # type: ignore[list-item]


# --- a paired change: Newcombe's interval


def test_newcombe_published_table() -> None:
    """Cavo et al. 2012 in Fagerland, Lydersen and Laake 2017, chapter 8 (R package contingencytables)."""
    result = change(59, 16, 6, 80)
    assert result.difference == pytest.approx(-0.0621, abs=5e-5)
    assert (result.low, result.high) == pytest.approx((-0.1186, -0.0046), abs=5e-5)


def score_limit(share: float, n: int, z: float, upper: bool) -> float:
    """A Wilson limit as a root of the score equation n (p - t)^2 = z^2 t (1 - t), not in closed form."""
    roots = np.roots([n + z * z, -(2 * n * share + z * z), n * share * share]).real
    return float(max(roots) if upper else min(roots))


def newcombe_by_covariance(table: list[list[int]], z: float) -> tuple[float, float]:
    """Method 10 from the 2x2 table, each end the length of a difference of two vectors at angle acos(phi)."""
    counts = np.array(table, dtype=float)
    n, rows, columns = counts.sum(), counts.sum(axis=1), counts.sum(axis=0)
    determinant = float(np.linalg.det(counts))
    corrected = determinant if determinant < 0 else max(0.0, determinant - n / 2)
    product = rows.prod() * columns.prod()
    phi = corrected / math.sqrt(product) if product else 0.0
    before, after = rows[0] / n, columns[0] / n
    metric = np.array([[1, -phi], [-phi, 1]])

    def length(after_upper: bool) -> float:
        after_arm = abs(score_limit(after, n, z, after_upper) - after)
        before_arm = abs(score_limit(before, n, z, not after_upper) - before)
        arms = np.array([after_arm, before_arm])
        return math.sqrt(arms @ metric @ arms)

    return after - before - length(False), after - before + length(True)


def test_newcombe_equals_an_independent_derivation() -> None:
    rng = np.random.default_rng(1)
    zs = {confidence: NormalDist().inv_cdf((1 + confidence) / 2) for confidence in (0.9, 0.95, 0.99)}
    for both, only_before, only_after, neither in rng.integers(0, 40, (200, 4)).tolist():
        for confidence, z in zs.items():
            result = change(both, only_before, only_after, neither, confidence)
            expected = newcombe_by_covariance([[both, only_before], [only_after, neither]], z)
            assert (result.low, result.high) == pytest.approx(expected, abs=1e-7)


@given(cells, confidences)
def test_swapping_before_and_after_negates(table: tuple[int, int, int, int], confidence: float) -> None:
    both, only_before, only_after, neither = table
    forward = change(both, only_before, only_after, neither, confidence)
    backward = change(both, only_after, only_before, neither, confidence)
    assert backward.difference == -forward.difference or math.isnan(forward.difference)
    assert (backward.low, backward.high) == pytest.approx((-forward.high, -forward.low), abs=1e-12)
    assert (backward.p_exact, backward.p_mid) == (forward.p_exact, forward.p_mid)


@given(filled_cells, confidences)
def test_counting_the_misses_negates(table: tuple[int, int, int, int], confidence: float) -> None:
    both, only_before, only_after, neither = table
    hits = change(both, only_before, only_after, neither, confidence)
    misses = change(neither, only_after, only_before, both, confidence)
    assert (misses.low, misses.high) == pytest.approx((-hits.high, -hits.low), abs=1e-12)


@given(filled_cells, confidences, confidences)
def test_interval_holds_the_estimate_and_grows_with_confidence(
    table: tuple[int, int, int, int], one: float, other: float
) -> None:
    narrow, wide = (change(*table, confidence=c) for c in sorted((one, other)))
    assert -1 <= narrow.low <= narrow.difference <= narrow.high <= 1
    assert wide.low <= narrow.low + 1e-12
    assert wide.high >= narrow.high - 1e-12


@given(cells)
def test_p_values_are_ordered(table: tuple[int, int, int, int]) -> None:
    result = change(*table)
    assert 0 < result.p_mid <= result.p_exact <= 1


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize(("only_before", "only_after"), [(0.02, 0.02), (0.05, 0.02), (0.01, 0.01), (0.10, 0.05)])
def test_newcombe_coverage(n: int, only_before: float, only_after: float) -> None:
    both = 0.05
    shares = [both, only_before, only_after, 1 - both - only_before - only_after]
    draws = np.random.default_rng(7).multinomial(n, shares, size=4000)
    tables, times = np.unique(draws, axis=0, return_counts=True)
    covered = 0
    for table, count in zip(tables.tolist(), times.tolist(), strict=True):
        result = change(*table)
        covered += count * (result.low <= only_after - only_before <= result.high)
    assert covered / len(draws) >= 0.94


# --- planning and deciding


def test_minimum_detectable_change_known_values() -> None:
    # 2.8 sqrt(.15 / 400) is 5.4 points
    assert minimum_detectable_change(400, 0.15) == pytest.approx(0.054, abs=5e-4)
    assert minimum_detectable_change(0, 0.2) == minimum_detectable_change(3, 1.0) == 1.0
    assert minimum_detectable_change(300, 0.0) > 0


@given(st.integers(4, 10**6), st.floats(0, 1), st.floats(0.5, 0.99))
def test_minimum_detectable_change_solves_connors_equation(n: int, discordant: float, power: float) -> None:
    found = minimum_detectable_change(n, discordant, power)
    share = max(discordant, found)
    z, z_power = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(power)
    spread = math.sqrt(max(0.0, share - found**2))
    assert math.sqrt(n) * found == pytest.approx(z * math.sqrt(share) + z_power * spread)


@given(st.integers(0, 5000), st.integers(0, 5000), st.floats(0, 1), st.floats(0, 1))
def test_minimum_detectable_change_is_monotone(n: int, more: int, share: float, other: float) -> None:
    low, high = sorted((share, other))
    assert minimum_detectable_change(n + more, low) <= minimum_detectable_change(n, low) + 1e-12
    assert minimum_detectable_change(n, low) <= minimum_detectable_change(n, high) <= 1
    assert minimum_detectable_change(n, low, 0.8) <= minimum_detectable_change(n, low, 0.9)
    assert minimum_detectable_change(n, low) <= minimum_detectable_change(n, low, confidence=0.99)


def test_a_minimum_detectable_change_is_detected_at_that_power() -> None:
    n, discordant = 400, 0.15
    change_found = minimum_detectable_change(n, discordant)
    worse, better = (discordant + change_found) / 2, (discordant - change_found) / 2
    draws = np.random.default_rng(3).multinomial(n, [worse, better, 1 - discordant], size=20_000)
    differing = draws[:, 0] + draws[:, 1]
    detected = np.abs(draws[:, 0] - draws[:, 1]) > NormalDist().inv_cdf(0.975) * np.sqrt(differing)
    assert detected.mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    "arguments", [(-1, 0.1), (10, -0.1), (10, 1.1), (10, math.nan), (10, 0.1, 0.4), (10, 0.1, 1.0)]
)
def test_minimum_detectable_change_refuses(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected n >= 0"):
        minimum_detectable_change(*arguments)  # type: ignore[arg-type]


def test_verdict() -> None:
    assert verdict(0.00, 0.02, 0.02) == "pass"
    assert verdict(0.03, 0.09, 0.02) == "fail"
    assert verdict(0.02, 0.09, 0.02) == "not enough data"
    assert verdict(math.nan, math.nan, 0.02) == "not enough data"


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_verdict_passes_only_when_the_whole_interval_does(one: float, other: float, limit: float) -> None:
    low, high = sorted((one, other))
    decided = verdict(low, high, limit)
    assert (decided == "pass") == (high <= limit)
    assert (decided == "fail") == (low > limit)


def test_one_sided() -> None:
    assert one_sided(0.9) == pytest.approx(0.8)
    assert one_sided(0.95) == pytest.approx(0.9)
    # each end of a 90 % interval is a 95 % bound: z = 1.645
    rate = wilson(30, 100, one_sided(0.95))
    z = NormalDist().inv_cdf(0.95)
    assert (0.3 - rate.low) / math.sqrt(rate.low * (1 - rate.low) / 100) == pytest.approx(z)
    with pytest.raises(ValueError, match="one-sided confidence"):
        one_sided(0.5)
