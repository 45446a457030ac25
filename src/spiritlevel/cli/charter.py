"""spiritlevel charter: lint, show, diff, new, schema."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from spiritlevel.charter import diff as charter_diff
from spiritlevel.charter import diff_probes, json_schema, judge_question, load_charter, read_probes, system_prompt
from spiritlevel.checks.lint import lint as lint_charter
from spiritlevel.cli.terminal import err, out
from spiritlevel.errors import SpiritLevelError

app = typer.Typer(help="Write, check and compare charters.", no_args_is_help=True)
TEMPLATES = files("spiritlevel.charter").joinpath("templates")
JSON = typer.Option(False, "--json", help="Machine-readable output.")


@app.command()
def lint(
    charters: list[Path] = typer.Argument(..., help="Charter files, or folders that hold charter.yaml."),
    as_json: bool = JSON,
) -> None:
    """Find faults: unknown fields, examples that break their own rule, untested rules. Exit 1 on errors."""
    faults = [fault for path in charters for fault in lint_charter(load_charter(path))]
    errors = sum(fault.level == "error" for fault in faults)
    if as_json:
        out.print_json(json.dumps([asdict(fault) for fault in faults]))
    else:
        for fault in faults:
            colour = "red" if fault.level == "error" else "yellow"
            out.print(f"{escape(fault.where)}: [{colour}]{fault.level}[/]: {escape(fault.message)}", soft_wrap=True)
        out.print(f"{errors} errors, {len(faults) - errors} warnings in {len(charters)} charter(s)")
    if errors:
        raise typer.Exit(1)


@app.command()
def show(
    charter: Path,
    prompt: bool = typer.Option(False, "--prompt", help="Print the system prompt that a model is given."),
    judge: str = typer.Option("", metavar="RULE", help="Print the judge question of one rule."),
    as_json: bool = JSON,
) -> None:
    """Show a charter: its rules, owners, checks, examples and probes, with its digest."""
    loaded = load_charter(charter)
    if prompt:
        out.print(system_prompt(loaded), markup=False, soft_wrap=True)
        return
    if judge:
        try:
            out.print(judge_question(loaded.rule(judge)), markup=False, soft_wrap=True)
        except KeyError:
            known = ", ".join(rule.id for rule in loaded.rules)
            raise SpiritLevelError(
                f"there is no rule {judge!r}", where=str(charter), remedy=f"Its rules are: {known}."
            ) from None
        return
    if as_json:
        out.print_json(json.dumps(loaded.model_dump(mode="json", by_alias=True) | {"digest": loaded.digest}))
        return
    held_out, train = read_probes(loaded, "held_out"), read_probes(loaded, "train")
    title = f"{loaded.name} {loaded.version}  ·  {loaded.digest[:12]}  ·  owner {loaded.owner}"
    table = Table(title=escape(title))
    columns = ("rule", "severity", "owner", "on violation", "checks", "good/bad", "train", "held out")
    for column in columns:
        table.add_column(column, justify="right" if column in ("checks", "good/bad", "train", "held out") else "left")
    for rule in loaded.rules:
        tests = [sum(p.rule == rule.id and p.expect != "help" for p in half) for half in (train, held_out)]
        examples = f"{len(rule.examples.good)}/{len(rule.examples.bad)}"
        cells = (rule.id, rule.severity, rule.owner, rule.on_violation, len(rule.checks), examples, *tests)
        table.add_row(*(escape(str(cell)) for cell in cells))
    helped = [str(sum(p.expect == "help" for p in half)) for half in (train, held_out)]
    table.add_section()
    table.add_row("(must be helped)", "", "", "", "", "", *helped)
    out.print(table)


@app.command()
def diff(old: Path, new: Path, as_json: bool = JSON) -> None:
    """Compare two versions: which rules and probes changed, and what that makes stale. Exit 1 if they differ."""
    before, after = load_charter(old), load_charter(new)
    changes = charter_diff(before, after)
    unread = None
    try:
        changes += diff_probes(before, after)
    except SpiritLevelError as error:  # as when an old version was taken out of its folder
        unread = error
        err.print(f"[yellow]the probes are not compared:[/] {escape(str(error))}", soft_wrap=True)
    if as_json:
        out.print_json(json.dumps([asdict(change) for change in changes]))
    elif not changes:
        out.print("the two charters mean the same" + (", but for their probes" if unread else ""))
    else:
        table = Table("change", "part", "fields", "now stale")
        for change in changes:
            table.add_row(change.kind, change.part, ", ".join(change.fields), ", ".join(change.stale))
        out.print(table)
    if changes or unread:
        raise typer.Exit(1)


def _template_names() -> list[str]:
    return sorted(entry.name for entry in TEMPLATES.iterdir() if entry.joinpath("charter.yaml").is_file())


def _list_templates(wanted: bool) -> None:
    if wanted:
        out.print("\n".join(_template_names()))
        raise typer.Exit


@app.command()
def new(
    folder: Path,
    template: str = typer.Option("accounting", help="accounting, healthcare, customer-support, …; see --list."),
    # Eager: it is served before the folder is missed.
    _: bool = typer.Option(
        False, "--list", is_eager=True, callback=_list_templates, help="List the templates and stop."
    ),
) -> None:
    """Start a charter from a template, with its probes."""
    names = _template_names()
    if template not in names:
        raise SpiritLevelError(f"there is no template {template!r}", remedy=f"Choose one of: {', '.join(names)}.")
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise SpiritLevelError(
            "exists and is not empty",
            where=str(folder),
            remedy="Choose a new folder: nothing is overwritten.",
        )
    with as_file(TEMPLATES.joinpath(template)) as source:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "charter.schema.json").write_text(json_schema() + "\n", encoding="utf-8")
    path = folder / "charter.yaml"
    text = path.read_text(encoding="utf-8").split("\n", 1)
    path.write_text("# yaml-language-server: $schema=charter.schema.json\n" + text[1], encoding="utf-8")
    wrote = f"wrote {path}; edit it, then `spiritlevel charter lint {folder}`"
    err.print(wrote, markup=False, soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a charter, for completion in your editor."""
    typer.echo(json_schema())
