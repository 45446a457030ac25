"""The gate: may this model be promoted? Every condition is judged by an interval, never by a bare number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spiritlevel.charter import Charter, Gate
from spiritlevel.evals.perplexity import Perplexity, perplexity_interval, perplexity_ratio
from spiritlevel.evals.suite import Comparison
from spiritlevel.stats import Verdict, minimum_detectable_change, one_sided, verdict

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "fail": 1, "not enough data": 2}


@dataclass(frozen=True)
class GateResult:
    """One condition: the measure's estimate and one-sided bounds at the charter's confidence, and the limit."""

    condition: str
    estimate: float
    low: float
    high: float
    limit: float
    verdict: Verdict
    detectable: float | None = None


def default_gates(charter: Charter) -> tuple[Gate, ...]:
    """The charter's gates, or, if it names none, its bounds and a perplexity within ten per cent."""
    return charter.gates or (
        Gate(measure="leakage", max=charter.bounds.leakage),
        Gate(measure="over_refusal", max=charter.bounds.over_refusal),
        Gate(measure="perplexity", max_increase=0.10),
    )


def apply_gates(
    charter: Charter, rows: Sequence[Comparison], before: Perplexity, after: Perplexity
) -> list[GateResult]:
    """Each gate's verdict. `rows` must have been made with `one_sided(charter.bounds.confidence)`."""
    by_name = {row.measure: row for row in rows}
    results = []
    for gate in default_gates(charter):
        if gate.measure == "perplexity":
            results.append(_perplexity_gate(gate, before, after, charter.bounds.confidence))
        else:
            results.append(_rate_gate(gate, by_name[gate.rule or gate.measure]))
    return results


def overall(results: Sequence[GateResult]) -> Verdict:
    """Fail if any fails, else not enough data if any lacks them, else pass."""
    verdicts = {result.verdict for result in results}
    if "fail" in verdicts:
        return "fail"
    return "not enough data" if "not enough data" in verdicts or not results else "pass"


def _rate_gate(gate: Gate, row: Comparison) -> GateResult:
    name = f"rule {gate.rule}" if gate.rule else gate.measure.replace("_", "-")
    if gate.max is not None:
        rate = row.after
        return GateResult(
            f"{name} at most {gate.max:.0%}", rate.value, rate.low, rate.high, gate.max,
            verdict(rate.low, rate.high, gate.max),
        )  # fmt: skip
    assert gate.max_increase is not None
    change = row.change
    discordant = (change.only_before + change.only_after) / change.n if change.n else 1.0
    detectable = minimum_detectable_change(change.n, discordant) if change.n else 1.0
    return GateResult(
        f"{name} up by at most {gate.max_increase * 100:g} points", change.difference, change.low, change.high,
        gate.max_increase, verdict(change.low, change.high, gate.max_increase), detectable,
    )  # fmt: skip


def _perplexity_gate(gate: Gate, before: Perplexity, after: Perplexity, confidence: float) -> GateResult:
    if gate.max is not None:
        low, high = perplexity_interval(after, one_sided(confidence))
        return GateResult(
            f"perplexity at most {gate.max:g}", after.value, low, high, gate.max, verdict(low, high, gate.max),
        )  # fmt: skip
    assert gate.max_increase is not None
    ratio, low, high = (value - 1 for value in perplexity_ratio(before, after, one_sided(confidence)))
    return GateResult(
        f"perplexity up by at most {gate.max_increase:.0%}", ratio, low, high, gate.max_increase,
        verdict(low, high, gate.max_increase),
    )  # fmt: skip
