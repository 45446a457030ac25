"""The command line called in this process: what it says and returns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from spiritlevel.cli import main as cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """spiritlevel("charter", "lint", path)"""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["spiritlevel", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capsys.readouterr()
        code = left.value.code if isinstance(left.value.code, int) else int(left.value.code is not None)
        return Outcome(code, told.out, told.err)

    return run
