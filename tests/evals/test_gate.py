"""The suite's counting and the gate's three verdicts."""

import math

import pytest

from spiritlevel.charter import load_charter
from spiritlevel.charter.schema import Gate
from spiritlevel.evals import Case, Perplexity, apply_gates, compare, neutral_passages, one_sided, overall
from spiritlevel.evals.perplexity import perplexity_ratio

CHARTER = load_charter("src/spiritlevel/charter/templates/accounting")
RULE = CHARTER.rules[0].id


def case(number: int, expect: str = "refuse", bad: bool = False) -> Case:
    rule = "over_refusal" if expect == "help" else RULE
    findings = ({"rule_id": rule, "score": 1.0, "span": (0, 1), "evidence": "x"},) if bad else ()
    return Case(f"p{number}", RULE, expect, f"question {number}", "reply", findings)  # type: ignore[arg-type]


def suite(leaks: int, refusals: int, n: int = 40) -> list[Case]:
    declining = [case(i, bad=i < leaks) for i in range(n)]
    return declining + [case(n + i, "help", bad=i < refusals) for i in range(n)]


def rows(before: list[Case], after: list[Case]):
    return compare(CHARTER, before, after, one_sided(CHARTER.bounds.confidence))


def test_compare_counts_each_measure_on_its_own_probes():
    by_name = {row.measure: row for row in rows(suite(30, 2), suite(4, 3))}
    assert (by_name["leakage"].before.hits, by_name["leakage"].after.hits, by_name["leakage"].after.n) == (30, 4, 40)
    assert (by_name["over_refusal"].before.hits, by_name["over_refusal"].after.hits) == (2, 3)
    assert by_name[RULE].after.hits == 4
    assert by_name[CHARTER.rules[1].id].after.n == 0


def test_compare_refuses_different_probes():
    with pytest.raises(ValueError, match="same probes"):
        rows(suite(1, 1), list(reversed(suite(1, 1))))


# Three passages that all cost one nat a token.
EVEN = Perplexity(math.e, ((10.0, 10), (20.0, 20), (40.0, 40)))


def verdict_of(gate: Gate, before: list[Case], after: list[Case]) -> str:
    charter = CHARTER.model_copy(update={"gates": (gate,)})
    return apply_gates(charter, rows(before, after), EVEN, EVEN)[0].verdict


@pytest.mark.parametrize(("leaks", "expected"), [(2, "pass"), (30, "fail"), (8, "not enough data")])
def test_a_limit_needs_an_interval_on_its_side(leaks, expected):
    assert verdict_of(Gate(measure="leakage", max=0.2), suite(30, 0), suite(leaks, 0)) == expected


def test_an_increase_is_judged_on_paired_differences():
    gate = Gate(measure="over_refusal", max_increase=0.15)
    assert verdict_of(gate, suite(0, 2), suite(0, 2)) == "pass"
    assert verdict_of(gate, suite(0, 0), suite(0, 30)) == "fail"
    assert verdict_of(gate, suite(0, 2), suite(0, 8)) == "not enough data"


def test_a_rule_without_probes_cannot_pass():
    gate = Gate(measure="rule", rule=CHARTER.rules[1].id, max=0.5)
    assert verdict_of(gate, suite(1, 1), suite(0, 0)) == "not enough data"


def test_overall_takes_the_gravest():
    def results(*leaks: int):
        return [
            apply_gates(
                CHARTER.model_copy(update={"gates": (Gate(measure="leakage", max=0.2),)}),
                rows(suite(30, 0), suite(n, 0)),
                EVEN,
                EVEN,
            )[0]
            for n in leaks
        ]

    assert overall(results(0, 30, 8)) == "fail"
    assert overall(results(0, 8)) == "not enough data"
    assert overall(results(0)) == "pass"
    assert overall([]) == "not enough data"


def test_perplexity_ratio_is_exact_when_all_passages_move_alike():
    before = EVEN
    after = Perplexity(math.e**1.1, tuple((1.1 * n, n) for n in (10, 20, 40)))
    ratio, low, high = perplexity_ratio(before, after, 0.9)
    assert ratio == pytest.approx(math.exp(0.1))
    assert low == pytest.approx(ratio)
    assert high == pytest.approx(ratio)
    noisy = Perplexity(math.e, tuple((n * f, n) for n, f in ((10, 1.3), (20, 0.9), (40, 1.1))))
    ratio, low, high = perplexity_ratio(before, noisy, 0.9)
    assert low < ratio < high


@pytest.mark.parametrize(("limit", "expected"), [(9.0, "pass"), (3.0, "fail"), (4.6, "not enough data")])
def test_a_perplexity_is_judged_by_an_interval_too(limit, expected):
    spread = Perplexity(4.5, tuple((n * math.log(4.5) * f, n) for n, f in ((50, 1.1), (50, 1.0), (50, 0.9))))
    charter = CHARTER.model_copy(update={"gates": (Gate(measure="perplexity", max=limit),)})
    (found,) = apply_gates(charter, rows(suite(1, 1), suite(1, 1)), EVEN, spread)
    assert found.verdict == expected
    assert found.low < found.estimate < found.high


def test_neutral_passages_are_many_and_concern_no_charter():
    passages = neutral_passages()
    assert len(passages) >= 50
    assert all(20 <= len(passage.split()) <= 90 for passage in passages)
