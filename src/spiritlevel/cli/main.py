"""`spiritlevel`: one module a verb, each a thin layer over the package of the same name."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import NoReturn

# No verb may reach the network unasked, and a hub that is down must not cost minutes.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from spiritlevel import __version__
from spiritlevel.cli import align, charter, chat, data, doctor, evaluate, model, train
from spiritlevel.cli.terminal import ERROR, fail
from spiritlevel.errors import SpiritLevelError

# What a disk or a path may do to us; other OSErrors are our own mistakes.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}
PATH = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}

# A mistake in the command is an error like any other: click's own code for it is a verdict's, "not enough data".
setattr(typer.BadParameter.__base__, "exit_code", ERROR)  # noqa: B010, mypy sees no UsageError in typer

app = typer.Typer(
    help="Align a language model with a charter: measure, train, measure again, and prove what changed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(charter.app, name="charter")
app.command("align")(align.align)
app.command("eval")(evaluate.evaluate)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.command("chat")(chat.chat)
app.add_typer(model.app, name="model")
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


class _Interrupted(BaseException):
    """Ctrl-C, under a name that click does not catch and turn into "Aborted!"."""


def _interrupt(*_: object) -> NoReturn:
    raise _Interrupted


def main() -> None:
    """The entry point: a user's mistake is one message and an exit code, never a traceback."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except SpiritLevelError as error:
        fail(str(error))
    except _Interrupted:
        fail("interrupted; everything finished so far is kept. Run the same command again to go on.", code=130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK | PATH:
            raise
        place = f"{error.filename}: " if error.filename else ""
        fail(f"{place}{error.strerror}. Everything finished so far is kept; mend this and run the same command again.")
