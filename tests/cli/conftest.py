"""What the tests of the command line share."""

import pytest

from command_line import Run, command_line


@pytest.fixture
def spiritlevel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """spiritlevel("charter", "lint", path): what the command line says and returns."""
    return command_line(monkeypatch, capsys)
