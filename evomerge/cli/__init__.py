"""The command line.

Exit codes: 0 done, or stopped on request and resumable; 2 what the user gave is wrong; 3 the run failed; 130
interrupted twice. Heavy packages are imported by the commands that need them.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from evomerge import __version__
from evomerge.cli.bank import bank
from evomerge.cli.experiments import check, doctor, init, plan, schema
from evomerge.cli.models import export, merge, pool
from evomerge.cli.runs import replay, report, run, status
from evomerge.errors import EvomergeError

__all__ = ["app", "main"]

app = typer.Typer(
    name="evomerge",
    help="Search for the model merge that trades your objectives off best, and prove it on unseen items.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=(
        "Exit codes: 0 done, or stopped on request and resumable; 2 something you gave is wrong; 3 the run failed; "
        "130 interrupted twice."
    ),
)

INTERRUPTED = 130
"""Exit code that typer gives a KeyboardInterrupt."""

for _command in (init, check, plan, pool, run, status, report, export, merge, replay, doctor, schema):
    app.command()(_command)
app.add_typer(bank)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evomerge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Search for the model merge that trades your objectives off best, and prove it on unseen items."""


def main() -> None:
    """Entry point: prints the message of an error meant for people, and exits with its code."""
    try:
        app()
    except EvomergeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of a pipe has gone, as in `evomerge status RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            typer.echo("interrupted; nothing that was recorded is lost, run the same command to go on", err=True)
        raise
