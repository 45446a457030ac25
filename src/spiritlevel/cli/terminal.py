"""What every verb shares: the two consoles, errors, progress."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator
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
from rich.text import Text

# Results go to stdout; progress and errors to stderr, so that `--json` can be piped.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def printable(text: str) -> str:
    """`text` without control characters: what a model or a charter says must not steer the terminal."""
    return "".join(mark for mark in text if mark in "\n\t" or unicodedata.category(mark) != "Cc")


def fail(message: str, code: int = 2) -> NoReturn:
    """Print an error and leave. 2 is a usage or input error; verdicts have their own codes."""
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
