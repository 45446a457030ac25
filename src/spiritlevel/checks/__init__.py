"""Checks judge replies and never change them. `check(chat, reply) -> list[Finding]`."""

from spiritlevel.checks.finding import Check, Finding
from spiritlevel.checks.kinds import build_check, rule_checks, run_checks
from spiritlevel.checks.probe import OVER_REFUSAL, Expectation, judge_probe
from spiritlevel.checks.stance import Stance, repetitive, stance

__all__ = [
    "OVER_REFUSAL",
    "Check",
    "Expectation",
    "Finding",
    "Stance",
    "build_check",
    "judge_probe",
    "repetitive",
    "rule_checks",
    "run_checks",
    "stance",
]
