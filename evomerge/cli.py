"""The command line.

Exit codes: 0 done, or stopped on request and resumable; 2 what the user gave is wrong; 3 the run failed; 130
interrupted twice. Heavy packages are imported by the commands that need them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge import __version__
from evomerge.errors import EvomergeError

if TYPE_CHECKING:
    from rich.console import Console

    from evomerge.config import Experiment

__all__ = ["app", "main"]

app = typer.Typer(
    name="evomerge",
    help="Search for the model merge that trades your objectives off best, and prove it on unseen items.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130
"""Exit code that typer gives a KeyboardInterrupt."""

ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="An experiment file, or a shipped name.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
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
CandidateOption = Annotated[str, typer.Option("--candidate", help="knee, best:OBJECTIVE or a candidate's number.")]


def _console() -> Console:
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would end the program with exit code 1
            raise BrokenPipeError

    return PipedConsole(file=sys.stdout, markup=False, highlight=False, soft_wrap=not sys.stdout.isatty())


def _load(name: str, assignments: list[str] | None) -> Experiment:
    from evomerge.config import load_experiment

    return load_experiment(name, assignments or ())


def _named_folders(texts: list[str]) -> dict[str, Path]:
    folders = {name: Path(folder) for name, equals, folder in (text.partition("=") for text in texts) if equals}
    if len(folders) < len(texts):
        raise typer.BadParameter("expected NAME=FOLDER, each name once", param_hint="--expert")
    return folders


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The experiment file to write.")],
    base: Annotated[Path, typer.Option(help="Folder of the base model.")],
    expert: Annotated[list[str], ExpertOption],
    task: Annotated[list[Path], typer.Option(help="An lm-eval task YAML, or a folder of them. May be repeated.")],
) -> None:
    """Write a commented experiment file for your own models and tasks."""
    from evomerge.starter import write_starter

    write_starter(file, base, _named_folders(expert), task)
    typer.echo(f"wrote {file}; next: evomerge check {file}")


@app.command()
def check(experiment: ExperimentArgument, set_: SetOption = None) -> None:
    """Check an experiment, its models, its search space and the names of its tasks, without running anything."""
    from evomerge.launch import lineup_of, open_pool
    from evomerge.opening import space_of
    from evomerge.starter import unknown_tasks

    config = _load(experiment, set_)
    lineup = lineup_of(config, open_pool(config))
    genes = len(space_of(config, lineup).genes)
    for note in unknown_tasks(config.fitness):
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{config.name}: ok (experts: {len(lineup.experts)}, layers: {lineup.layers}, genes: {genes})")


@app.command()
def plan(experiment: ExperimentArgument, set_: SetOption = None) -> None:
    """Show what a run will take: candidates, items, memory."""
    from rich.table import Table

    from evomerge.launch import lineup_of, open_pool
    from evomerge.opening import space_of
    from evomerge.plan import estimate_plan

    config = _load(experiment, set_)
    pool = open_pool(config)
    lineup = lineup_of(config, pool)
    table = Table(box=None, show_header=False)
    for name, value in estimate_plan(config, pool, lineup, space_of(config, lineup)):
        table.add_row(name, value)
    _console().print(table)


@app.command()
def pool(
    experiment: Annotated[str | None, typer.Argument(metavar="[EXPERIMENT]", help="Whose models to look at.")] = None,
    base: Annotated[Path | None, typer.Option(help="Instead of an experiment: folder of the base model.")] = None,
    expert: Annotated[list[str] | None, ExpertOption] = None,
    tokenizer: TokenizerOption = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write heat maps into an HTML file that opens offline.")
    ] = None,
) -> None:
    """Look at models before merging: how much each changes its base, cosines, sign conflicts, alarms."""
    from evomerge.launch import open_pool
    from evomerge.merging.kinship import kinship
    from evomerge.merging.pool import ModelPool
    from evomerge.reports import print_kinship, write_kinship

    experts = _named_folders(expert or [])
    if (base is None or not experts) if experiment is None else (base or experts or tokenizer):
        raise typer.BadParameter("expected an experiment, or --base and --expert", param_hint="EXPERIMENT")
    if base is None:
        models = open_pool(_load(str(experiment), None))
    else:
        models = ModelPool.open(base, experts, tokenizer=tokenizer)
    found = kinship(models)
    print_kinship(found, _console())
    if html is not None:
        typer.echo(write_kinship(found, ", ".join(found.experts), html))


@app.command()
def run(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="An experiment file, a shipped name, or a run folder.")
    ],
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if left out.")] = None,
    executor: Annotated[str | None, typer.Option(help="serial or ray, instead of what the file says.")] = None,
    set_: SetOption = None,
) -> None:
    """Run an experiment; on an existing run folder, go on where it stopped."""
    from evomerge.launch import launch
    from evomerge.stopping import Stop
    from evomerge.watching import watching

    changes = [*([f"executor.kind={executor}"] if executor else []), *(set_ or [])]
    folder, config = _folder_and_config(experiment, out, changes)
    console = _console()
    with Stop().listening() as stop, watching(console) as watch:
        for progress in launch(config, folder, stop, lambda text: console.print(text, soft_wrap=True)):
            watch(progress, stop.requested)
    _conclude(folder, console)


def _folder_and_config(name: str, out: Path | None, changes: list[str]) -> tuple[Path, Experiment]:
    from evomerge.config import recorded_experiment
    from evomerge.runs import RunStore

    if out is None and RunStore.exists(Path(name)):
        with RunStore.read(Path(name)) as store:
            return Path(name), recorded_experiment(store.experiment, name, changes)
    config = _load(name, changes)
    return out or Path("runs") / config.name, config


def _conclude(folder: Path, console: Console) -> None:
    """The verdict of a run that ended, or how to go on with one that was stopped."""
    from importlib.util import find_spec

    from evomerge.reports import print_verdict, summarize, write_report
    from evomerge.runs import RunStore

    page = None
    with RunStore.read(folder) as store:
        if store.meta("state") == "stopped":
            console.print(f"Stopped on request; nothing is lost. To go on: evomerge run {folder}")
        if find_spec("plotly") and find_spec("jinja2"):
            try:
                page = write_report(store, folder / "report.html")
            except EvomergeError as error:  # a report can be written again at any time; the verdict counts
                typer.echo(f"warning: {error}", err=True)
        print_verdict(summarize(store), console, page)


@app.command()
def status(run: RunArgument) -> None:
    """Show where a run stands, whether it is running or not."""
    from evomerge.reports import print_status, summarize
    from evomerge.runs import RunStore

    with RunStore.read(run) as store:
        print_status(summarize(store), _console())


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="The HTML file; RUN/report.html if left out.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw the front into a PNG file.")] = None,
) -> None:
    """Write the report of a run: one HTML file that opens offline."""
    from evomerge.reports import summarize, write_png, write_report
    from evomerge.runs import RunStore

    with RunStore.read(run) as store:
        typer.echo(write_report(store, out or run / "report.html"))
        if png is not None:
            write_png(summarize(store), png)
            typer.echo(png)


@app.command()
def export(
    run: RunArgument,
    candidate: CandidateOption = "knee",
    out: Annotated[Path | None, typer.Option(help="The new folder; RUN/export/CANDIDATE if left out.")] = None,
    adapter: AdapterOption = False,
) -> None:
    """Write one candidate as a model folder, with model card and mergekit recipe."""
    from evomerge.publish import export as write_model

    typer.echo(write_model(run, candidate, out, adapter=adapter))


@app.command()
def merge(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A mergekit YAML, or the recipe.json of an export.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the base model, if the file does not say.")] = None,
    expert: Annotated[list[str] | None, ExpertOption] = None,
    tokenizer: TokenizerOption = None,
    *,
    adapter: AdapterOption = False,
) -> None:
    """Merge once, without a search: what a mergekit YAML or an exported recipe says."""
    from evomerge.merge import merge as merge_models

    folders = ({} if base is None else {"base": base}) | _named_folders(expert or [])
    typer.echo(merge_models(file, out, folders, tokenizer, adapter=adapter))


@app.command()
def replay(
    run: RunArgument,
    candidate: Annotated[
        str | None,
        typer.Option("--candidate", help="Also merge and score this one again: knee, best:OBJECTIVE, number."),
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


@app.command()
def doctor() -> None:
    """Look at this machine: versions, devices, memory, and what is missing."""
    from rich.table import Table

    from evomerge.doctor import examine

    table = Table(box=None, show_header=False)
    for finding in examine():
        table.add_row(finding.state, finding.name, f"{finding.found}{f'; {finding.fix}' if finding.fix else ''}")
    _console().print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of experiment files, for editors."""
    from evomerge.config import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(), indent=2))


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
