"""spiritlevel data from-docs: a team's documents as training data."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from spiritlevel.charter import load_charter
from spiritlevel.cli.terminal import TerminalProgress, err, out
from spiritlevel.errors import SpiritLevelError

if TYPE_CHECKING:
    from spiritlevel.data.documents import DomainData


def from_docs(
    folder: Path = typer.Argument(..., help="A folder of Markdown, text, HTML and PDF files, or one such file."),
    output: Path = typer.Option(Path("demonstrations.jsonl"), "--out", help="A .jsonl or .parquet file."),
    chunks: Path | None = typer.Option(
        None, help="A .jsonl file that also gets the chunks, as `text`; not for `train`."
    ),
    model: str | None = typer.Option(None, help="A model that asks about each chunk. (default: structure alone asks)"),
    pairs: int = typer.Option(3, min=1, help="How many questions the model is asked for on each chunk."),
    max_new_tokens: int = typer.Option(400, min=1, help="The model's longest reply, in tokens."),
    charter: Path | None = typer.Option(None, help="A charter whose held-out probes must stay unseen."),
    suite: list[Path] = typer.Option([], help="A .jsonl, .json or .csv file whose texts must stay unseen; repeatable."),
    words: int = typer.Option(200, min=20, help="The longest chunk, in words."),
    wordings: int = typer.Option(2, min=1, max=3, help="In how many ways a question of the structure is asked."),
    encoding: str | None = typer.Option(None, help="Of files that are not UTF-8. (default: they are passed over)"),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Demonstrations from a team's documents: questions by their structure or a model, answers in their own words."""
    from spiritlevel.data import check_writable, write_demonstrations
    from spiritlevel.data.documents import ask_for_questions, chunk_rows, make_demonstrations, read_documents
    from spiritlevel.data.overlap import Unseen, held_out_texts, read_suite
    from spiritlevel.store import ContentStore, write_jsonl

    check_writable(output)
    held_out = held_out_texts(load_charter(charter)) if charter else []
    unseen = Unseen([*held_out, *(text for path in suite for text in read_suite(path))])
    progress = TerminalProgress()
    with progress.stage("read documents") as advance:
        documents, passed = read_documents(folder, encoding=encoding, on_progress=advance)
    ask = None
    with progress.stage("make demonstrations") as advance:
        if model:
            from spiritlevel.models import open_model

            ask = partial(
                ask_for_questions,
                open_model(model),
                store=ContentStore(output.with_name(f"{output.name}.store")),
                pairs=pairs,
                max_new_tokens=max_new_tokens,
                on_progress=advance,
            )
        data = make_demonstrations(documents, unseen=unseen, words=words, wordings=wordings, ask=ask)
    if not data.demonstrations:
        raise SpiritLevelError(
            f"gave no demonstration ({_counts(_dropped(data)) or 'nothing but headings'})",
            where=str(folder),
            remedy="Give documents with more text, or fewer suites.",
        )
    write_demonstrations(output, data.demonstrations)
    if chunks:
        write_jsonl(chunks, chunk_rows(data.chunks))
    _report(output, data, passed, as_json=as_json)


def _report(output: Path, data: DomainData, passed: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        documents = {name: vars(counts) for name, counts in data.counts.items()}
        out.print_json(json.dumps({"documents": documents, "passed_over": passed}))
        return
    title = f"{len(data.demonstrations)} demonstrations and {len(data.chunks)} chunks in {output}"
    table = Table("document", "chunks", "demonstrations", "of", "left out", title=escape(title))
    for name, counts in data.counts.items():
        total = str(counts.records.total())
        left_out = ", ".join(filter(None, [_counts(counts.dropped), counts.note]))
        table.add_row(escape(name), str(counts.chunks), total, _counts(counts.records), escape(left_out))
    out.print(table)
    for reason, count in Counter(passed.values()).most_common():
        names = [name for name, why in passed.items() if why == reason]
        shown = ", ".join(names[:3]) + (", …" if count > 3 else "")
        err.print(f"passed over {count}, {reason}: {shown}", markup=False, soft_wrap=True)


def _dropped(data: DomainData) -> Counter[str]:
    return sum((counts.dropped for counts in data.counts.values()), Counter())


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())
