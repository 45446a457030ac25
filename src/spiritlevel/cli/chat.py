"""spiritlevel chat: talk to a model, and see what the charter's checks say about its replies."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from rich.markup import escape

from spiritlevel.charter import charter_messages, load_charter
from spiritlevel.chat import Chat, assistant, user
from spiritlevel.cli.terminal import err, out


def chat(
    model: str = typer.Option("smollm2-135m", help="smollm2-135m, a directory, a hub id, or openai:MODEL@URL."),
    charter: Path = typer.Option(None, help="Run this charter's checks on every reply."),
    prompted: bool = typer.Option(False, help="Also give the model the charter as system prompt and examples."),
    max_new_tokens: int = typer.Option(256, help="The longest reply, in tokens."),
    temperature: float = typer.Option(0.0, min=0.0, help="0 is greedy."),
) -> None:
    """Talk to a model. An empty line or Ctrl-D ends; lines can also be piped in."""
    loaded = load_charter(charter) if charter else None
    from spiritlevel.checks import rule_checks, run_checks
    from spiritlevel.models import open_model

    opened = open_model(model)
    checks = [check for rule in loaded.rules for check in rule_checks(rule)] if loaded else []
    history: Chat = charter_messages(loaded, "")[:-1] if loaded and prompted else []
    said: Chat = []
    if sys.stdin.isatty():
        err.print(f"[dim]talking to {escape(model)}; an empty line ends[/]")
    while (line := _ask()) != "":
        said.append(user(line))
        reply = ""
        for piece in opened.stream([*history, *said], max_new_tokens=max_new_tokens, temperature=temperature):
            out.print(piece, end="", markup=False, soft_wrap=True)
            reply += piece
        out.print()
        for finding in run_checks(checks, said, reply):
            err.print(f"[yellow]{finding.rule_id}[/]: {escape(finding.evidence)}")
        said.append(assistant(reply))
    opened.close()


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
