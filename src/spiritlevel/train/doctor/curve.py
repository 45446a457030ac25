"""A run's metrics as curves, and the robust statistics that signs are made of.

All of them are of the order of the points, never of the step numbers, so that a log of every tenth step reads like one
of every step. Medians and ranks: one wild batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from spiritlevel.train.objectives import OBJECTIVES, Pairwise

# Chance of seeing a trend in a curve that has none. Of some thirty curves and questions one run in thirty would show a
# false trend somewhere; so each sign asks for a size of change besides.
SURE = 1e-3
# Longer curves are read as medians of so many stretches: neighbours in a long curve are too alike to count as evidence
# one by one.
STRETCHES = 100

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One metric over a run. steps ascend; values may hold nan and inf, which only `broken` sees."""

    steps: tuple[float, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.finite)

    @cached_property
    def finite(self) -> Numbers:
        values = np.array(self.values, dtype=np.float64)
        return values[np.isfinite(values)]

    @cached_property
    def at(self) -> Numbers:
        """The steps of `finite`."""
        return np.array(self.steps, dtype=np.float64)[np.isfinite(self.values)]

    @cached_property
    def broken(self) -> list[float]:
        """The steps at which the value is nan or infinite."""
        return [step for step, value in zip(self.steps, self.values, strict=True) if not np.isfinite(value)]

    @cached_property
    def fifths(self) -> list[float]:
        """The medians of five equal stretches of the run; nan where there are fewer than five points."""
        return [float(np.median(part)) if len(part) else np.nan for part in np.array_split(self.finite, 5)]

    @property
    def first(self) -> float:
        return float(self.finite[0]) if len(self) else np.nan

    @property
    def start(self) -> float:
        return self.fifths[0]

    @property
    def end(self) -> float:
        return self.fifths[-1]

    @cached_property
    def late(self) -> Numbers:
        """The last two fifths: what holds there is no passing phase."""
        return self.finite[-max(1, 2 * len(self) // 5) :]

    @cached_property
    def direction(self) -> int:
        return direction(self.finite)

    def since(self, fifth: int) -> Numbers:
        """The values from one fifth (0 to 4) on."""
        return np.concatenate(np.array_split(self.finite, 5)[fifth:])

    def told(self, fifth: int = -1) -> str:
        """One fifth's median with its steps, as evidence."""
        steps = np.array_split(self.at, 5)[fifth]
        return f"{figure(self.fifths[fifth])} (steps {steps[0]:.0f} to {steps[-1]:.0f})"

    def course(self) -> str:
        """From where to where it went, as evidence."""
        return f"{self.told(0)} → {self.told(-1)}"


@dataclass(frozen=True)
class Run:
    """What is known of one training run. curves: by canonical name (`names.py`).

    logged_as: canonical name -> the name in the log. settings: of the training, where the run kept them.
    """

    curves: Mapping[str, Curve]
    logged_as: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __getitem__(self, name: str) -> Curve:
        return self.curves[name]

    def __contains__(self, name: object) -> bool:
        return name in self.curves

    @property
    def last_step(self) -> float:
        return max((curve.steps[-1] for curve in self.curves.values()), default=0.0)

    @property
    def planned_steps(self) -> float | None:
        return self["steps"].finite[-1] if "steps" in self and len(self["steps"]) else None

    @property
    def has_rollouts(self) -> bool:
        """PPO, RLOO, GRPO and their like: the loss is then no measure of progress, since its data change with the
        policy."""
        return "reward" in self and "margin" not in self

    @cached_property
    def implicit_rewards(self) -> str | None:
        """What the rewards of chosen and rejected replies are: `ratio`, β log π/π_ref; `likelihood`, β log π, of
        methods without a reference; None, where they are a reward model's or the log does not tell."""
        if "reward_chosen" not in self or "reward_rejected" not in self:
            return None
        objectives: Iterable[tuple[str, type]] = OBJECTIVES.items()
        for name, objective in objectives:  # ours log their own loss under their name
            if name in self and issubclass(objective, Pairwise):
                return "ratio" if objective.needs_reference else "likelihood"
        if self.logged_as.get("reward_chosen") != "rewards/chosen":
            return None
        if "logprob_chosen" in self:
            rewards, likelihoods = together(self["reward_chosen"], self["logprob_chosen"])
            scale = rewards[likelihoods != 0] / likelihoods[likelihoods != 0]
            if len(scale) and np.ptp(scale) <= 0.01 * abs(np.median(scale)):
                return "likelihood"
        return "ratio"


def direction(values: Sequence[float] | Numbers) -> int:
    """1 if the values rise with their order, -1 if they fall, 0 if that may be chance (Kendall's tau, p < `SURE`)."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) > STRETCHES:
        values = np.array([np.median(part) for part in np.array_split(values, STRETCHES)])
    if len(values) < 5 or np.ptp(values) == 0:
        return 0
    tau, p = kendalltau(np.arange(len(values)), values)
    return 0 if p >= SURE else int(np.sign(tau))


def together(left: Curve, right: Curve) -> tuple[Numbers, Numbers]:
    """The values of two curves at the steps that both have."""
    _, ours, theirs = np.intersect1d(left.at, right.at, return_indices=True)
    return left.finite[ours], right.finite[theirs]


def figure(value: float) -> str:
    """Three digits that count, with a true minus sign."""
    return f"{value:.3g}".replace("-", "−")
