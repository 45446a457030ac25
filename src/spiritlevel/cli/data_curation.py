"""spiritlevel data curate and report: undesirable rows out, and what is wrong with a file of training data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from spiritlevel.charter import load_charter
from spiritlevel.cli.terminal import TerminalProgress, err, out
from spiritlevel.errors import SpiritLevelError

if TYPE_CHECKING:
    from spiritlevel.data.curate import Filter
    from spiritlevel.data.trl import TrlRow


_FILE = (
    "Training data in TRL's formats: preferences, single replies with or without a label, plain text; JSONL, JSON "
    "(both also .gz), Parquet. Prompts alone, rankings, tool calls and replies of several turns can't be read."
)


def curate(
    file: Path = typer.Argument(..., help=_FILE),
    output: Path = typer.Option(..., "--out", help="A .jsonl or .parquet file; FILE.dropped.jsonl comes beside it."),
    charter: Path | None = typer.Option(None, help="A charter: no row may give away its held-out probes."),
    forbid_rule_violations: bool = typer.Option(
        False, help="Drop rows whose chosen reply breaks a rule of the charter, by the rule's own checks."
    ),
    suite: list[Path] = typer.Option([], help="A file whose texts no row may give away; may be given several times."),
    forbid_identifiers: bool = typer.Option(
        False, help="Drop rows that hold an e-mail address, an IBAN or a number of seven digits or more."
    ),
    language: str | None = typer.Option(None, help="Drop rows that are surely in another language, such as: en."),
    min_words: int = typer.Option(0, min=0, help="Drop rows whose chosen reply is shorter."),
    max_length: int | None = typer.Option(
        None, min=1, help="Drop rows whose prompt and longer reply are longer: tokens with --model, else words."
    ),
    model: str | None = typer.Option(None, help="Whose tokens and template --max-length counts."),
    similar: float = typer.Option(0.8, min=0.7, max=1.0, help="From what likeness on two rows are near duplicates."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable counts."),
) -> None:
    """Take undesirable rows out. Rows stay as they were read; each dropped one is kept beside with reason and evidence.

    Always dropped: what can't be read, empty replies, equal replies, contradictions, duplicates. There is no learned
    toxicity filter yet; the `forbid` patterns of a charter are what there is.
    """
    from spiritlevel.data import check_writable
    from spiritlevel.data.curate import counts
    from spiritlevel.data.curate import curate as sort_out
    from spiritlevel.data.trl import read_trl, write_trl
    from spiritlevel.store import write_jsonl

    check_writable(output)
    beside = output.with_name(f"{output.name}.dropped.jsonl")
    filters = [
        *_plain_filters(min_words, max_length, model, forbid_identifiers, language),
        *_charter_filters(charter, suite, forbid_rule_violations),
    ]
    rows, unreadable = read_trl(file)
    with TerminalProgress().stage("curate", 2 * len(rows)) as advance:
        kept, dropped = sort_out(rows, filters, similar=similar, on_progress=advance)
    lost = [{"line": row.number, "reason": f"can't be read: {row.reason}", "text": row.text} for row in unreadable]
    write_jsonl(beside, [each.as_json() for each in dropped] + lost)
    if not kept:
        raise SpiritLevelError("no row is left", where=str(file), remedy=f"See {beside} for why each was dropped.")
    write_trl(output, kept)
    found = counts(dropped, unreadable)
    every = len(rows) + len(unreadable)
    if as_json:
        reasons = [{"reason": reason, "rule": rule, "rows": count} for reason, rule, count in found]
        document = {"rows": every, "kept": len(kept), "dropped": reasons, "out": str(output), "beside": str(beside)}
        out.print_json(json.dumps(document))
        return
    table = Table("dropped because", "rule", "rows", title=escape(f"{len(kept)} of {every} rows kept in {output}"))
    for reason, rule, count in found:
        table.add_row(escape(reason), rule or "", str(count))
    out.print(table)
    err.print(f"what was dropped: {beside}", markup=False, soft_wrap=True)


def report(
    file: Path = typer.Argument(..., help=_FILE),
    model: str | None = typer.Option(None, help="Whose tokens and template to look with: a directory or hub id."),
    max_length: int = typer.Option(1024, min=1, help="Where training cuts, in tokens; TRL's default. Needs --model."),
    output: Path | None = typer.Option(None, "--out", help="An HTML page with plots; it needs no network."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """What a file of training data holds, what training loses of it, and what is wrong with it."""
    from spiritlevel.data.chat_template import open_tokenizer
    from spiritlevel.data.report import data_report
    from spiritlevel.data.report_page import print_report, render_html
    from spiritlevel.store import write_text

    tokenizer = None if model is None else open_tokenizer(model)
    with TerminalProgress().stage("compare and measure the rows") as advance:
        made = data_report(file, tokenizer=tokenizer, max_length=max_length, on_progress=advance)
    if output is not None:
        write_text(output, render_html(made))
    if as_json:
        out.print_json(json.dumps(made))
    else:
        print_report(made, out)
    if output is not None:
        err.print(f"page: {output}", markup=False, soft_wrap=True)


def _plain_filters(
    min_words: int, max_length: int | None, model: str | None, identifiers: bool, language: str | None
) -> list[Filter]:
    from spiritlevel.data import curate as filters

    if model is not None and max_length is None:
        raise SpiritLevelError("--model is for counting tokens", remedy="Give --max-length too, or leave it out.")
    chosen: list[Filter] = [filters.empty_reply, filters.same_replies]
    if min_words:
        chosen.append(filters.too_short(min_words))
    if max_length is not None:
        chosen.append(filters.too_long(_length(model), max_length, "words" if model is None else "tokens"))
    if language is not None:
        chosen.append(filters.other_language(language))
    if identifiers:
        chosen.append(filters.holding(filters.identifiers))
    return chosen


def _length(model: str | None) -> Callable[[TrlRow], int]:
    from spiritlevel.data.chat_template import open_tokenizer
    from spiritlevel.data.lengths import measure_by

    measure = measure_by(None if model is None else open_tokenizer(model))
    return lambda row: measure(row).whole


def _charter_filters(charter: Path | None, suites: list[Path], forbid_violations: bool) -> list[Filter]:
    from spiritlevel.data import curate as filters
    from spiritlevel.data.overlap import Unseen, held_out_texts, read_suite

    if charter is None and forbid_violations:
        raise SpiritLevelError("--forbid-rule-violations needs rules", remedy="Give --charter too.")
    texts = [text for suite in suites for text in read_suite(suite)]
    chosen: list[Filter] = []
    if charter is not None:
        loaded = load_charter(charter)
        texts += held_out_texts(loaded)
        if forbid_violations:
            chosen.append(filters.breaking(filters.charter_checks(loaded)))
    return [*chosen, filters.leaking(Unseen(texts))] if texts else chosen
