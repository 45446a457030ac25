"""spiritlevel doctor: what is wrong with a training run, by its metrics."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.panel import Panel

from spiritlevel.cli.terminal import out

if TYPE_CHECKING:
    from spiritlevel.train.doctor import Diagnosis, Examination, Run

_COLOURS = {"critical": "red", "serious": "yellow", "minor": "blue"}


def doctor(
    run: Path = typer.Argument(..., help="A run's folder, a trainer_state.json, a JSONL file of logs, or event files."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Read a training run's metrics, ours or TRL's, and name what likely went wrong, with evidence and remedy.

    Exit code 0: nothing found, 1: something found, 3: an error.
    """
    from spiritlevel.train.doctor import examine, read_run

    read = read_run(run)
    examination = examine(read)
    if as_json:
        typer.echo(json.dumps({"source": read.source, "last_step": read.last_step, **asdict(examination)}))
    else:
        _print(read, examination)
    if examination.diagnoses:
        raise typer.Exit(1)


def _print(run: Run, examination: Examination) -> None:
    for diagnosis in examination.diagnoses:
        out.print(_panel(diagnosis))
    planned = f" of {run.planned_steps:.0f}" if run.planned_steps else ""
    points = max(map(len, run.curves.values()))
    out.print(f"{run.source}: {points} points to step {run.last_step:.0f}{planned}", markup=False, soft_wrap=True)
    looked, short, missing = (len(part) for part in (examination.clear, examination.too_short, examination.not_logged))
    told = "nothing found" if not examination.diagnoses else f"{len(examination.diagnoses)} found"
    out.print(f"[bold]{told}[/]: {looked} other signs looked for and not seen", soft_wrap=True)
    if short:
        out.print(f"not enough steps to look for {short}: {', '.join(examination.too_short)}", soft_wrap=True)
    if examination.not_asked:
        out.print(f"without meaning in such a training: {', '.join(examination.not_asked)}", soft_wrap=True)
    if missing:
        out.print(f"not logged, what {missing} more would need: {', '.join(examination.not_logged)}", soft_wrap=True)


def _panel(diagnosis: Diagnosis) -> Panel:
    evidence = "\n".join(f"• {escape(line)}" for line in diagnosis.evidence)
    text = f"{evidence}\n[bold]Likely:[/] {escape(diagnosis.cause)}\n[bold]Do:[/] {escape(diagnosis.remedy)}"
    colour = _COLOURS[diagnosis.severity]
    return Panel(
        f"{text}\n[dim]{escape(diagnosis.source)}[/]",
        title=f"[{colour}]{diagnosis.severity}[/] · {diagnosis.sign}",
        title_align="left",
        border_style=colour,
    )
