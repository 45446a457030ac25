"""From measurements to the report: one document that the page, the terminal and other programs read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from spiritlevel.charter import Charter
from spiritlevel.evals import (
    Case,
    Comparison,
    Perplexity,
    Rate,
    Verdict,
    apply_gates,
    compare,
    one_sided,
    overall,
)
from spiritlevel.store import RunRecord, installed_versions, machine

# Two-sided confidence of the intervals in tables; gates use the charter's own, one-sided.
INTERVAL_CONFIDENCE = 0.95

_TITLES = {
    "leakage": "All questions that must be declined, referred or redacted",
    "over_refusal": "Questions that must be helped, refused",
    "broken_while_helping": "Rules broken while helping",
    "repetitive_help": "Questions that must be helped, answered with repetitions",
}

Measured = tuple[list[Case], Perplexity]


def build_report(
    *,
    charter: Charter,
    model: dict[str, str],
    aligned: dict[str, str],
    before: Measured,
    after: Measured,
    training: dict[str, Any],
    records: Sequence[RunRecord],
    seed: int,
    command: str,
) -> dict[str, Any]:
    """The report as plain JSON values; numbers that do not exist are null."""
    confidence = charter.bounds.confidence
    bounds = compare(charter, before[0], after[0], one_sided(confidence))
    gates = apply_gates(charter, bounds, before[1], after[1])
    rows = compare(charter, before[0], after[0], INTERVAL_CONFIDENCE)
    verdict = overall(gates)
    report = {
        "schema": "spiritlevel/report/1",
        "verdict": verdict,
        "sentence": _sentence(verdict, charter, rows),
        "charter": {
            "name": charter.name,
            "version": charter.version,
            "digest": charter.digest,
            "owner": charter.owner,
            "path": str(charter.path),
        },
        "model": model,
        "aligned_model": aligned,
        "seed": seed,
        "confidence": confidence,
        "interval_confidence": INTERVAL_CONFIDENCE,
        "rows": [_row(charter, row) for row in rows],
        "gates": [asdict(gate) for gate in gates],
        "perplexity": {
            "before": before[1].value,
            "after": after[1].value,
            "ratio": after[1].value / before[1].value,
            "passages": len(before[1].passages),
        },
        "cases": [_case(old, new) for old, new in zip(before[0], after[0], strict=True)],
        "training": training,
        "judges": [
            {
                "role": "choosing training replies",
                "judge": "the charter's checks (deterministic), on train probes only",
            },
            {"role": "gate", "judge": "the same checks, on held-out probes that no training stage has seen"},
            {"role": "monitor", "judge": "none yet: nothing is served"},
        ],
        "runs": [asdict(record) | {"id": record.id} for record in records],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(),
        "versions": installed_versions(),
    }
    return {name: _null_for_nan(value) for name, value in report.items()}


def _sentence(verdict: Verdict, charter: Charter, rows: Sequence[Comparison]) -> str:
    leakage, over = rows[0], rows[1]
    start = {
        "pass": "The aligned model passes every gate",
        "fail": "The aligned model fails the gate",
        "not enough data": "There is not enough data to pass or fail the aligned model",
    }[verdict]
    probes = leakage.after.n + over.after.n
    return (
        f"{start} of {charter.name} {charter.version}: leakage {_share(leakage.before)} → {_share(leakage.after)}, "
        f"over-refusal {_share(over.before)} → {_share(over.after)} on {probes} held-out probes."
    )


def _share(rate: Rate) -> str:
    return f"{rate.value:.1%}" if rate.n else "not measured"


def _row(charter: Charter, row: Comparison) -> dict[str, Any]:
    rule = next((rule for rule in charter.rules if rule.id == row.measure), None)
    return {
        "measure": row.measure,
        "title": rule.title if rule else _TITLES[row.measure],
        "owner": rule.owner if rule else None,
        "severity": rule.severity if rule else None,
        "before": _rate(row.before),
        "after": _rate(row.after),
        "change": asdict(row.change),
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {"hits": rate.hits, "n": rate.n, "value": rate.value, "low": rate.low, "high": rate.high}


def _null_for_nan(value: Any) -> Any:
    """JSON has no word for a number that does not exist but null."""
    if isinstance(value, dict):
        return {name: _null_for_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_null_for_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _case(before: Case, after: Case) -> dict[str, Any]:
    outcomes = {
        (True, False): "fixed",
        (False, True): "broken",
        (False, False): "still good",
        (True, True): "still bad",
    }
    return {
        "probe": after.probe,
        "rule": after.rule,
        "expect": after.expect,
        "prompt": after.prompt,
        "before": {"reply": before.reply, "findings": list(before.findings)},
        "after": {"reply": after.reply, "findings": list(after.findings)},
        "outcome": outcomes[bool(before.findings), bool(after.findings)],
    }
