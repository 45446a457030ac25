"""The one exception a user may see: what happened, where, and what to do next."""

from __future__ import annotations


class SpiritLevelError(Exception):
    """A mistake in the input or the surroundings, told without a traceback.

    `where` names the file and line, field, URL or device; `remedy` says what to do next.
    """

    def __init__(self, problem: str, *, where: str = "", remedy: str = "") -> None:
        self.problem, self.where, self.remedy = problem, where, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  → {self.remedy}" if self.remedy else ""
        return f"{place}{self.problem}{advice}"


def check_setting(name: str, value: object, holds: bool, wanted: str) -> None:
    """Raises SpiritLevelError that names the setting and says what it may be, unless `holds`."""
    if not holds:
        raise SpiritLevelError(f"{name} is {value}", remedy=f"Give {wanted}.")
