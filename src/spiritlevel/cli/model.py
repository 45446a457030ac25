"""spiritlevel model: where a model's weights are, adapters merged, GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import typer
from typer.core import TyperGroup

from spiritlevel.cli.terminal import TerminalProgress, err, out


class _FolderFirst(TyperGroup):
    """`spiritlevel model NAME` is `spiritlevel model folder NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["folder", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(help="Find, merge and export models.", cls=_FolderFirst, no_args_is_help=True)


@app.command()
def folder(
    spec: str = typer.Argument("smollm2-135m", help="smollm2-135m, a directory, or a hub id."),
    as_json: bool = typer.Option(False, "--json", help="Also the digest, as JSON."),
) -> None:
    """Print the directory of a model, converting or fetching it first if need be: plain transformers loads it.

    The word may be left out: spiritlevel model smollm2-135m
    """
    from spiritlevel.models import model_folder, open_local

    place = model_folder(spec)
    if as_json:
        out.print_json(json.dumps({"model": spec, "folder": str(place), "digest": open_local(spec).digest}))
    else:
        typer.echo(place)


@app.command()
def merge(
    adapter: str = typer.Argument(help="The directory of a PEFT adapter; it names its base."),
    target: Path = typer.Option(..., "--out", help="The directory to write: a whole model as safetensors."),
) -> None:
    """Merge an adapter into its base."""
    from spiritlevel.train import merge_adapter

    with TerminalProgress().stage("merge"):
        merge_adapter(adapter, target)
    err.print(f"wrote {target}", markup=False, soft_wrap=True)


@app.command()
def export(
    spec: str = typer.Argument(help="smollm2-135m, a directory, or a hub id. Merge an adapter first."),
    gguf: Path = typer.Option(..., "--gguf", help="The file to write."),
    kind: Literal["f32", "f16", "bf16", "q8_0"] = typer.Option("f16", "--type", help="How to store the weights."),
) -> None:
    """Write a Llama, Qwen2 or Qwen3 model as one GGUF file, for llama.cpp and what is built on it."""
    from spiritlevel.models import export_gguf, model_folder

    with TerminalProgress().stage(f"export {kind}"):
        export_gguf(model_folder(spec), gguf, kind=kind)
    err.print(f"wrote {gguf}", markup=False, soft_wrap=True)
