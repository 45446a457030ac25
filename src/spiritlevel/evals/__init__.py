"""Measuring a model against a charter, comparing two measurements, and the gate."""

from spiritlevel.evals.gate import EXIT_CODES, GateResult, apply_gates, overall
from spiritlevel.evals.perplexity import Perplexity, neutral_passages, perplexity
from spiritlevel.evals.suite import Case, Comparison, compare, judge, measure
from spiritlevel.stats import PairedChange, Rate, Verdict, one_sided, paired_change, wilson

__all__ = [
    "EXIT_CODES",
    "Case",
    "Comparison",
    "GateResult",
    "PairedChange",
    "Perplexity",
    "Rate",
    "Verdict",
    "apply_gates",
    "compare",
    "judge",
    "measure",
    "neutral_passages",
    "one_sided",
    "overall",
    "paired_change",
    "perplexity",
    "wilson",
]
