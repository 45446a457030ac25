"""spiritlevel align: the whole loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from spiritlevel.charter import load_charter
from spiritlevel.checks.lint import require_sound
from spiritlevel.cli.terminal import TerminalProgress, err, out


def align(
    charter: Path = typer.Argument(..., help="The charter file, or the folder that holds charter.yaml."),
    model: str = typer.Option("smollm2-135m", help="smollm2-135m, a directory, or a hub id."),
    output: Path = typer.Option(None, "--out", help="Where the run is kept (default: runs/CHARTER-MODEL-seedN)."),
    seed: int = typer.Option(0, help="Draws every random choice of the run."),
    epochs: int = typer.Option(None, min=1, help="Passes over the pairs."),
    learning_rate: float = typer.Option(None, "--lr", help="Peak learning rate of the adapter."),
    max_new_tokens: int = typer.Option(None, min=1, help="The longest reply, in tokens."),
    save_seconds: float = typer.Option(30.0, min=0.0, help="Time between checkpoints of the training."),
    as_json: bool = typer.Option(False, "--json", help="Print report.json to stdout instead of the table."),
) -> None:
    """Measure, make pairs, train, measure again, gate, report. Kill it anywhere and call it again: it goes on.

    Exit code 0: passes every gate, 1: fails one, 2: not enough data, 3: an error.
    """
    loaded = load_charter(charter)
    require_sound(loaded)
    folder = output or Path("runs") / f"{loaded.name}-{Path(model).resolve().name}-seed{seed}"
    # Only now the heavy imports: a faulty charter is told at once.
    from spiritlevel.align import AlignConfig
    from spiritlevel.align import align as run
    from spiritlevel.align.report import print_report
    from spiritlevel.evals import EXIT_CODES

    config = AlignConfig().seeded(seed)
    chosen: dict[str, Any] = {"epochs": epochs, "learning_rate": learning_rate, "save_seconds": save_seconds}
    config = replace(config, train=replace(config.train, **{k: v for k, v in chosen.items() if v is not None}))
    if max_new_tokens is not None:
        contrast = replace(config.contrast, max_new_tokens=min(max_new_tokens, config.contrast.max_new_tokens))
        config = replace(config, max_new_tokens=max_new_tokens, contrast=contrast)
    kept = escape(f"{model} · seed {seed} · kept in {folder}")
    err.print(f"[bold]{loaded.name} {loaded.version}[/] · {kept}", soft_wrap=True)
    report = run(loaded, model, folder, config, TerminalProgress())
    if as_json:
        typer.echo((folder / "report.json").read_text(encoding="utf-8"))
    else:
        print_report(report, out)
        places = f"report: {folder / 'report.html'}   model: {folder / 'model'}"
        out.print(places, markup=False, soft_wrap=True)
    raise typer.Exit(EXIT_CODES[report["verdict"]])
