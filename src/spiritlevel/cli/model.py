"""spiritlevel model: where a model's weights are."""

from __future__ import annotations

import json

import typer

from spiritlevel.cli.terminal import out


def model(
    spec: str = typer.Argument("smollm2-135m", help="smollm2-135m, a directory, or a hub id."),
    as_json: bool = typer.Option(False, "--json", help="Also the digest, as JSON."),
) -> None:
    """Print the directory of a model, converting or fetching it first if need be: plain transformers loads it."""
    from spiritlevel.models import model_folder, open_local

    folder = model_folder(spec)
    if as_json:
        out.print_json(json.dumps({"model": spec, "folder": str(folder), "digest": open_local(spec).digest}))
    else:
        typer.echo(folder)
