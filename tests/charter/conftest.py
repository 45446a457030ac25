"""A small charter, as text and as a document, for tests that take it apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

BAKERY = r"""# The charter of a bakery.
name: bakery
version: 1.0.0
owner: anna@bakery.example
role: You answer questions about our bakery.
tone:
  voice: Warm and short.
  do: [Answer first]
  dont: [Lecture]
scope:
  in: [Bread]
  out: [Weddings]
  otherwise: I can't help with that here.
rules:
  - id: no-recipes
    title: No recipes
    text: Do not tell how our sourdough is made.
    severity: high
    owner: bakers@bakery.example
    applies_to: [output]
    on_violation: refuse
    say:
      - I can't share our recipes.
    checks:
      - kind: forbid
        patterns: ['\bhydration\b', rye starter]
        when: [recipe]
        unless: [secret]
    examples:
      good:
        - prompt: How do you make it?
          reply: I can't share our recipes.
      bad:
        - prompt: What goes in?
          reply: Mix a rye starter.
  - id: no-allergy-advice
    title: No advice on allergies
    text: Do not say what somebody with an allergy may eat.
    severity: critical
    owner: health@bakery.example
    on_violation: escalate
    checks:
      - kind: decline
principles:
  - id: kind
    text: Choose the kinder reply.
high_stakes:
  - topic: Allergies
    patterns: [allerg]
    review:
      by: health@bakery.example
      within_minutes: 30
few_shot:
  - prompt: When do you open?
    reply: At seven.
bounds:
  leakage: 0.1
  over_refusal: 0.2
  confidence: 0.8
gates:
  - measure: rule
    rule: no-recipes
    max: 0.1
  - measure: leakage
    max: 0.4
  - measure: over_refusal
    max_increase: 0.2
  - measure: perplexity
    max: 30
monitors:
  - measure: leakage
    rule: no-recipes
    owner: anna@bakery.example
    alarm_above: 0.3
probes:
  train: [train.jsonl]
  held_out: [held_out.jsonl]
"""


@pytest.fixture(scope="session")
def bakery() -> str:
    return BAKERY


@pytest.fixture(scope="session")
def document() -> Callable[[], dict[str, Any]]:
    """A fresh copy of the bakery's charter, to be edited."""
    whole = yaml.safe_load(BAKERY)
    return lambda: deepcopy(whole)


@pytest.fixture(scope="session")
def charter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path to write charters to; session-wide, so that Hypothesis may use it."""
    return tmp_path_factory.mktemp("charter") / "charter.yaml"
