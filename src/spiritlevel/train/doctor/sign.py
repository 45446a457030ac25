"""What a sign is: a pure function from a run to evidence or None, with what the evidence means and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from spiritlevel.train.doctor.curve import Run

# critical: the result is not what was meant, whatever its figures. serious: it is worse than it could be.
# minor: worth knowing.
Severity = Literal["critical", "serious", "minor"]
SEVERITIES: tuple[Severity, ...] = ("critical", "serious", "minor")

Evidence = list[str]
Look = Callable[[Run], Evidence | None]

# A fifth is then four points: its median bears one wild batch, and a steady trend over all of them is beyond chance.
ENOUGH = 20


@dataclass(frozen=True)
class Diagnosis:
    """A sign that was found. evidence: figures with their steps."""

    sign: str
    severity: Severity
    evidence: tuple[str, ...]
    cause: str
    remedy: str
    source: str


@dataclass(frozen=True)
class Sign:
    """needs: the curves it reads and the fewest points of each. asked_of: the runs in which it means something.
    `looks_for` says when it is found, and why so."""

    name: str
    severity: Severity
    needs: Mapping[str, int]
    cause: str
    remedy: str
    source: str
    look: Look
    asked_of: Callable[[Run], bool]

    @property
    def looks_for(self) -> str:
        return " ".join((self.look.__doc__ or "").split())

    def __call__(self, run: Run) -> Diagnosis | None:
        evidence = self.look(run)
        if evidence is None:
            return None
        return Diagnosis(self.name, self.severity, tuple(evidence), self.cause, self.remedy, self.source)


SIGNS: dict[str, Sign] = {}


def any_run(run: Run) -> bool:
    return True


def sign(
    name: str, severity: Severity, *, needs: Mapping[str, int], cause: str, remedy: str, source: str,
    asked_of: Callable[[Run], bool] = any_run,
) -> Callable[[Look], Look]:  # fmt: skip
    """Register a function as a sign. Its docstring is the documentation: when the sign is found, and why so."""

    def register(look: Look) -> Look:
        SIGNS[name] = Sign(name, severity, needs, cause, remedy, source, look, asked_of)
        return look

    return register


@dataclass(frozen=True)
class Examination:
    """diagnoses: worst first. The other signs by name: `clear` was looked for and not found, `too_short` needs more
    points, `not_asked` means nothing in such a training, `not_logged` -> the curves that the run lacks."""

    diagnoses: tuple[Diagnosis, ...]
    clear: tuple[str, ...]
    too_short: tuple[str, ...]
    not_asked: tuple[str, ...]
    not_logged: dict[str, tuple[str, ...]]


def examine(run: Run) -> Examination:
    """Ask every sign."""
    found: list[Diagnosis] = []
    clear, too_short, not_asked = [], [], []
    not_logged: dict[str, tuple[str, ...]] = {}
    for each in SIGNS.values():
        missing = tuple(name for name in each.needs if name not in run)
        if missing:
            not_logged[each.name] = missing
        elif not each.asked_of(run):
            not_asked.append(each.name)
        elif any(len(run[name]) < points for name, points in each.needs.items()):
            too_short.append(each.name)
        elif diagnosis := each(run):
            found.append(diagnosis)
        else:
            clear.append(each.name)
    found.sort(key=lambda diagnosis: SEVERITIES.index(diagnosis.severity))
    return Examination(tuple(found), tuple(clear), tuple(too_short), tuple(not_asked), not_logged)
