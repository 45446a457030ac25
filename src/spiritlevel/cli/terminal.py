"""What every verb shares: the two consoles, errors, progress."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

# Beside control characters: marks that turn the direction of what follows.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """`text` without what could steer a terminal."""
    return "".join(
        mark for mark in text if mark in "\n\t" or (unicodedata.category(mark) != "Cc" and mark not in _TURNING)
    )


class SafeConsole(Console):
    """Whatever a model, a charter or a file says can't steer the terminal; Rich's own colours pass."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        safe = (part if part.control else Segment(printable(part.text), part.style) for part in buffer)
        return super()._render_buffer(safe)


# Of several processes that train together only the first speaks.
_SILENT = os.environ.get("RANK", "0") != "0"

# Results go to stdout; progress and errors to stderr, so that `--json` can be piped.
out = SafeConsole(highlight=False, quiet=_SILENT)
err = SafeConsole(stderr=True, highlight=False, quiet=_SILENT)


# A mistake in the input or the machine: not a code that a verdict has.
ERROR = 3


def fail(message: str, code: int = ERROR) -> NoReturn:
    """Print an error and leave."""
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(code)


class TerminalProgress:
    """Stages as they go by; training shows loss, margin, tokens a second and memory."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._current: TaskID | None = None

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        with self._bars:
            task = self._bars.add_task(escape(name), total=total, note="")
            self._current = task
            try:
                yield lambda count: self._bars.advance(task, count)
                seconds = self._bars.tasks[-1].elapsed or 0.0
            finally:
                self._bars.remove_task(task)
                self._current = None
        err.print(f"[green]✓[/] {escape(name)} [dim]{seconds:.0f} s[/]")

    def done_before(self, name: str) -> None:
        err.print(f"[green]✓[/] {escape(name)} [dim]kept from an earlier call[/]")

    def step(self, metrics: dict[str, float]) -> None:
        note = f"loss {metrics['loss']:.3f}"
        if "margin" in metrics:
            note += f"  margin {metrics['margin']:+.2f}"
        note += f"  {metrics['tokens_per_second']:.0f} tokens/s  {metrics['memory_gb']:.1f} GB"
        if self._current is not None:
            self._bars.update(self._current, completed=metrics["step"], total=metrics["steps"], note=note)
