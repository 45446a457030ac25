"""The report as a document: what is counted, what is missing, and that it is JSON whatever was measured."""

from __future__ import annotations

import io
import json
import math
from typing import Any

from rich.console import Console

from spiritlevel.align.report import print_report, render_html
from spiritlevel.align.summary import build_report
from spiritlevel.charter import Charter, load_charter
from spiritlevel.evals import Case, Perplexity
from spiritlevel.store import RunRecord

CHARTER = load_charter("src/spiritlevel/charter/templates/accounting")
RULE = CHARTER.rules[0]
TEXT = Perplexity(math.exp(1.0), ((10.0, 10), (22.0, 20), (38.0, 40)))
WORSE = Perplexity(math.exp(1.2), ((12.0, 10), (26.0, 20), (46.0, 40)))


def cases(count: int, bad: int, expect: str) -> list[Case]:
    finding = {"rule_id": "over_refusal" if expect == "help" else RULE.id, "score": 1.0, "span": (0, 1), "evidence": ""}
    return [
        Case(f"{expect}{i}", RULE.id, expect, f"question {i}", "a reply", (finding,) if i < bad else ())  # type: ignore[arg-type]
        for i in range(count)
    ]


def report_of(before: list[Case], after: list[Case], charter: Charter = CHARTER) -> dict[str, Any]:
    return build_report(
        charter=charter,
        model={"name": "m", "digest": "a" * 64},
        aligned={"path": "runs/x/model", "digest": "b" * 64},
        before=(before, TEXT),
        after=(after, WORSE),
        training={"method": "DPO", "pairs": 0, "sources": {}, "dropped": {}, "history": [], "settings": {}},
        records=[RunRecord("train", {}, {}, "spiritlevel align", "2026-01-01T00:00:00+00:00", 1.0)],
        seed=0,
        command="spiritlevel align",
    )


def test_the_numbers_are_those_of_the_cases() -> None:
    report = report_of(
        cases(40, 30, "refuse") + cases(40, 1, "help"),
        cases(40, 2, "refuse") + cases(40, 3, "help"),
    )
    rows = {row["measure"]: row for row in report["rows"]}
    assert (rows["leakage"]["before"]["hits"], rows["leakage"]["after"]["hits"]) == (30, 2)
    assert rows["over_refusal"]["change"]["difference"] == 2 / 40
    assert rows[RULE.id]["title"] == RULE.title and rows[RULE.id]["owner"] == RULE.owner
    assert [case["outcome"] for case in report["cases"]].count("fixed") == 28
    assert [case["outcome"] for case in report["cases"]].count("broken") == 2
    assert report["perplexity"]["ratio"] == WORSE.value / TEXT.value
    assert "leakage 75.0% → 5.0%, over-refusal 2.5% → 7.5% on 80 held-out probes" in report["sentence"]


def test_what_was_not_measured_is_null_and_never_passes() -> None:
    report = report_of(cases(9, 5, "refuse"), cases(9, 0, "refuse"))
    json.dumps(report, allow_nan=False)
    over = next(row for row in report["rows"] if row["measure"] == "over_refusal")
    assert over["after"]["value"] is None and over["change"]["difference"] is None
    assert "over-refusal not measured → not measured" in report["sentence"]
    gates = {gate["condition"]: gate for gate in report["gates"]}
    judged = [gate for condition, gate in gates.items() if condition.startswith("over-refusal")]
    assert judged and all(gate["estimate"] is None and gate["verdict"] == "not enough data" for gate in judged)
    assert report["verdict"] != "pass"
    told = io.StringIO()
    print_report(report, Console(file=told, width=100))
    assert "nan" not in told.getvalue().lower() and ">nan" not in render_html(report)
