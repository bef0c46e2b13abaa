"""Commands about runs: starting or going on, looking at them, proving that they reproduce."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli import completion
from evomerge.cli.options import RunArgument, SetOption, open_console
from evomerge.errors import EvomergeError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["replay", "report", "run", "status"]


def run(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT",
            help="An experiment file, a shipped name, or a run folder.",
            autocompletion=completion.starts,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if left out.")] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            help="serial, ray, or a worker profile by path or name, instead of what the file says.",
            autocompletion=completion.executors,
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Tell a tracker: tensorboard, wandb, mlflow, trackio. May be repeated.",
            autocompletion=completion.trackers,
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Run an experiment; on an existing run folder, go on where it stopped."""
    from evomerge.api import resolve
    from evomerge.lasting import undisturbed
    from evomerge.launch import launch
    from evomerge.reports import Glances
    from evomerge.stopping import Stop
    from evomerge.watching import watching

    key = "executor.kind" if executor in ("serial", "ray") else "executor"
    trackers = [f"trackers=[{', '.join(track)}]"] if track else []
    changes = [*([f"{key}={executor}"] if executor else []), *trackers, *(set_ or [])]
    folder, config = resolve(experiment, out, changes)
    glances = Glances(config, folder)
    with undisturbed(folder / "logs" / "console.log") as terminal, Stop().listening() as stop:
        console = open_console(terminal)
        with watching(console, stop) as watch:
            for progress in launch(config, folder, stop, lambda text: console.print(text, soft_wrap=True)):
                watch(progress, glances.look() if console.is_terminal else None)
    _conclude(folder, open_console())


def _conclude(folder: Path, console: Console) -> None:
    """The verdict of a run that ended, or how to go on with one that was stopped."""
    from importlib.util import find_spec

    from evomerge.reports import print_verdict, summarize, write_report
    from evomerge.runs import RunStore

    page = None
    with RunStore.read(folder) as store:
        if store.meta("state") == "stopped":
            console.print(f"Stopped on request; nothing is lost. To go on: evomerge run {folder}")
        summary = summarize(store)
    if find_spec("jinja2"):
        try:
            page = write_report(summary, folder / "report.html")
        except EvomergeError as error:  # a report can be written again at any time; the verdict counts
            typer.echo(f"warning: {error}", err=True)
    print_verdict(summary, console, page)


def status(run: RunArgument) -> None:
    """Show where a run stands, whether it is running or not."""
    from evomerge.reports import MANY, Tally, screen, summarize, verdict
    from evomerge.runs import RunStore, experiment_of

    console = open_console()
    with RunStore.read(run) as store:
        standing = Tally(experiment_of(store)).look(store)
        console.print(screen(standing, bar=console.is_terminal))
        if standing.state == "finished" and standing.done < MANY:
            console.print(f"\n{verdict(summarize(store)).headline}")


def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="The HTML file; RUN/report.html if left out.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw the front into a PNG file.")] = None,
    random: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A random search of the same experiment, to compare progress with.",
            autocompletion=completion.runs,
        ),
    ] = None,
) -> None:
    """Write the report of a run: one HTML file that opens offline."""
    from evomerge.reports import summarize, write_png, write_report
    from evomerge.runs import RunStore

    with RunStore.read(run) as store, nullcontext() if random is None else RunStore.read(random) as other:
        summary = summarize(store, other)
    typer.echo(write_report(summary, out or run / "report.html"))
    if png is not None:
        write_png(summary, png)
        typer.echo(png)


def replay(
    run: RunArgument,
    candidate: Annotated[
        str | None,
        typer.Option(
            "--candidate",
            help="Also merge and score this one again: knee, best:OBJECTIVE, an anchor or a number.",
            autocompletion=completion.candidates,
        ),
    ] = None,
) -> None:
    """Prove that a run reproduces: its genes from the seed, and one candidate's scores from its recipe."""
    from evomerge.replay import replay_genomes, rescore

    generations = replay_genomes(run)
    typer.echo(f"{generations} generations: the algorithm asks for the recorded genes")
    if candidate is not None:
        again = rescore(run, candidate)
        typer.echo(
            f"candidate {again.candidate}: {again.items - len(again.differing)} of {again.items} items as recorded"
        )
        for task, item in again.differing[:20]:
            typer.echo(f"  differs: {task} item {item}")
        if again.differing:
            raise typer.Exit(3)
