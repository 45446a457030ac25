"""spiritlevel data: make, check and convert training data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from spiritlevel.charter import load_charter, read_probes
from spiritlevel.checks.lint import require_sound
from spiritlevel.cli import data_best_of_n, data_curation, data_documents
from spiritlevel.cli.terminal import TerminalProgress, err, out

app = typer.Typer(help="Make, check, clean and convert training data.", no_args_is_help=True)
app.command("from-docs")(data_documents.from_docs)
app.command("best-of-n")(data_best_of_n.best_of_n)
app.command("curate")(data_curation.curate)
app.command("report")(data_curation.report)


@app.command()
def contrast(
    charter: Path = typer.Argument(..., help="The charter file, or the folder that holds charter.yaml."),
    model: str = typer.Option("smollm2-135m", help="The model whose replies are contrasted."),
    output: Path = typer.Option(Path("pairs.jsonl"), "--out", help="A .jsonl or .parquet file."),
    samples: int = typer.Option(2, min=0, help="Replies drawn under the charter per question to be declined."),
    wordings: int = typer.Option(1, min=1, help="How many of a rule's own wordings are taught, from the first on."),
    whole_wordings: int | None = typer.Option(
        None,
        min=0,
        help="How often a wording is said whole; later only its opening, for our DPO alone. (default: always)",
    ),
    max_new_tokens: int = typer.Option(64, help="The longest reply, in tokens."),
    seed: int = typer.Option(0),
) -> None:
    """Preference pairs from a charter's train probes: each question answered under the charter and without it."""
    loaded = load_charter(charter)
    require_sound(loaded)
    probes = read_probes(loaded, "train")
    from spiritlevel.data import ContrastConfig, check_writable, contrast_pairs, contrast_workload, write_preferences
    from spiritlevel.models import open_model
    from spiritlevel.store import ContentStore

    check_writable(output)
    config = ContrastConfig(
        samples=samples, wordings=wordings, whole_wordings=whole_wordings, max_new_tokens=max_new_tokens, seed=seed
    )
    store = ContentStore(output.with_name(f"{output.name}.store"))
    with TerminalProgress().stage("make preference pairs", contrast_workload(probes, config)) as advance:
        pairs, report = contrast_pairs(loaded, probes, open_model(model), config, store=store, on_progress=advance)
    write_preferences(output, pairs)
    title = escape(f"{len(pairs)} pairs in {output}")
    table = Table("rule", "pairs", "from", "gave no pair", title=title)
    for rule in sorted({*report.pairs, *report.dropped}):
        sources, dropped = report.pairs.get(rule, Counter()), report.dropped.get(rule, Counter())
        table.add_row(rule, str(sum(sources.values())), _counts(sources), _counts(dropped))
    out.print(table)


@app.command()
def check(file: Path, as_json: bool = typer.Option(False, "--json", help="Machine-readable output.")) -> None:
    """Validate records of any kind and count them by rule and source. Errors name the line."""
    from spiritlevel.data import read_records

    records = read_records(file)
    rules = Counter(record.rule or "(none)" for record in records)
    sources = Counter(record.source for record in records)
    if as_json:
        out.print_json(json.dumps({"records": len(records), "rules": rules, "sources": sources}))
        return
    told = f"{len(records)} records; rules: {_counts(rules)}; sources: {_counts(sources)}"
    out.print(told, markup=False, soft_wrap=True)


@app.command()
def convert(source: Path, target: Path) -> None:
    """Convert between JSONL and Parquet (by suffix): every record is validated and written with all its columns."""
    from spiritlevel.data import check_writable, read_records
    from spiritlevel.data.record import read_rows, write_rows

    check_writable(target)
    read_records(source)
    rows = [row for _, row in read_rows(source)]
    write_rows(target, rows)
    err.print(f"wrote {len(rows)} records to {target}", markup=False, soft_wrap=True)


def _counts(counter: Mapping[Any, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(counter).most_common())
