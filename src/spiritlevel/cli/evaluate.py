"""spiritlevel eval: a model against a charter's held-out probes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from spiritlevel.charter import load_charter, read_probes
from spiritlevel.checks.lint import require_sound
from spiritlevel.cli.terminal import TerminalProgress, err, out


def evaluate(
    charter: Path = typer.Argument(..., help="The charter file, or the folder that holds charter.yaml."),
    model: str = typer.Option("smollm2-135m", help="smollm2-135m, a directory, a hub id, or openai:MODEL@URL."),
    output: Path = typer.Option(None, "--out", help="Keep replies and cases here (default: runs/eval-NAME)."),
    max_new_tokens: int = typer.Option(64, help="The longest reply, in tokens."),
    confidence: float = typer.Option(0.95, min=0.5, max=0.999, help="Of the two-sided intervals."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Answer every held-out probe and print each rule's violation rate with its Wilson interval.

    Replies are kept: a second call, or one after a change of the checks, generates only what is missing.
    """
    loaded = load_charter(charter)
    require_sound(loaded)
    probes = read_probes(loaded, "held_out")
    from spiritlevel.evals import compare, measure
    from spiritlevel.models import open_model
    from spiritlevel.store import ContentStore, write_json

    folder = output or Path("runs") / f"eval-{loaded.name}"
    opened = open_model(model)
    with TerminalProgress().stage(f"measure {model}", len(probes)) as advance:
        cases = measure(
            loaded, probes, opened, store=ContentStore(folder / "store"), max_new_tokens=max_new_tokens,
            on_progress=advance,
        )  # fmt: skip
    rows = compare(loaded, cases, cases, confidence)
    result = {
        "charter": {"name": loaded.name, "digest": loaded.digest},
        "model": {"name": model, "digest": opened.digest},
        "confidence": confidence,
        "rates": {row.measure: asdict(row.after) for row in rows},
        "cases": [asdict(case) for case in cases],
    }
    write_json(folder / "cases.json", result)
    opened.close()
    if as_json:
        typer.echo(json.dumps(result))
        return
    table = Table(title=f"{escape(model)} against {loaded.name} {loaded.version}")
    table.add_column("measure")
    for column in ("bad", "of", "rate", f"{confidence:.0%} interval"):
        table.add_column(column, justify="right")
    for row in rows:
        rate = row.after
        value = f"{rate.value:.0%}" if rate.n else "–"
        table.add_row(row.measure, str(rate.hits), str(rate.n), value, f"{rate.low:.0%} to {rate.high:.0%}")
    out.print(table)
    err.print(f"replies and findings: {folder / 'cases.json'}", markup=False, soft_wrap=True)
