"""What commands share: arguments, options, the console, and how experiments are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import typer

from evomerge.cli import completion

if TYPE_CHECKING:
    from rich.console import Console

    from evomerge.config import Experiment

__all__ = [
    "AdapterOption",
    "CandidateOption",
    "ExperimentArgument",
    "ExperimentOption",
    "ExpertOption",
    "RunArgument",
    "SetOption",
    "TokenizerOption",
    "load",
    "named_paths",
    "open_console",
]

ExperimentArgument = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT", help="An experiment file, or a shipped name.", autocompletion=completion.experiments
    ),
]
ExperimentOption = Annotated[
    str,
    typer.Option(
        "--experiment",
        metavar="EXPERIMENT",
        help="An experiment file, or a shipped name.",
        autocompletion=completion.experiments,
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=completion.runs)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. budget.evaluations=100. May be repeated."),
]
ExpertOption = typer.Option("--expert", metavar="NAME=FOLDER", help="An expert. May be repeated.")
TokenizerOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Whose tokenizer the merged model takes, if they differ: base, or an expert."),
]
AdapterOption = Annotated[
    bool, typer.Option("--adapter", help="Write a LoRA adapter on the base; only where that holds the same merge.")
]
CandidateOption = Annotated[
    str,
    typer.Option(
        "--candidate",
        help="knee, best:OBJECTIVE, an anchor (base, uniform, an expert) or a candidate's number.",
        autocompletion=completion.candidates,
    ),
]


def open_console(file: TextIO | None = None) -> Console:
    """Standard output, or another stream, for people: lines on a pipe are as long as they are."""
    from rich.console import Console

    from evomerge.lasting import Lasting

    file = file or sys.stdout
    return Console(file=cast("TextIO", Lasting(file)), markup=False, highlight=False, soft_wrap=not file.isatty())


def load(name: str, assignments: list[str] | None) -> Experiment:
    """An experiment by file or shipped name, with some values changed."""
    from evomerge.config import load_experiment

    return load_experiment(name, assignments or ())


def named_paths(texts: list[str], option: str = "--expert", what: str = "FOLDER") -> dict[str, Path]:
    """Folders or files by name, from `NAME=FOLDER`.

    Raises:
        typer.BadParameter: something else, or a name twice.
    """
    folders = {
        name: Path(folder) for name, equals, folder in (text.partition("=") for text in texts) if name and equals
    }
    if len(folders) < len(texts):
        raise typer.BadParameter(f"expected NAME={what}, each name once", param_hint=option)
    return folders
