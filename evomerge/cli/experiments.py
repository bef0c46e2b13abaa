"""Commands about experiments and the machine: what is written, checked and known before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli.options import ExperimentArgument, ExpertOption, SetOption, load, named_paths, open_console

if TYPE_CHECKING:
    from evomerge.config import Experiment
    from evomerge.merging.pool import ModelPool
    from evomerge.opening import Lineup
    from evomerge.plan import Pace
    from evomerge.spaces import SearchSpace

__all__ = ["check", "doctor", "init", "plan", "schema"]


def init(
    file: Annotated[Path, typer.Argument(help="The experiment file to write.")],
    base: Annotated[Path, typer.Option(help="Folder of the base model.")],
    expert: Annotated[list[str], ExpertOption],
    task: Annotated[
        list[Path] | None, typer.Option(help="An lm-eval task YAML, or a folder of them. May be repeated.")
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead of a task: a .jsonl with a prompt and an answer on each line. May be repeated.",
        ),
    ] = None,
) -> None:
    """Write a commented experiment file for your own models and tasks."""
    from evomerge.starter import write_starter

    written = write_starter(file, base, named_paths(expert), task or (), questions or ())
    typer.echo(f"wrote {' and '.join(map(str, written))}; next: evomerge check {file}")


def check(experiment: ExperimentArgument, set_: SetOption = None) -> None:
    """Check an experiment, its models, its search space and the names of its tasks, without running anything."""
    from evomerge.fitting import space_of
    from evomerge.guard import refuse_too_few, unfound_tasks, warnings_of
    from evomerge.opening import found_by
    from evomerge.pools import lineup_of, open_pool, repeats_in

    config = load(experiment, set_)
    pool = open_pool(config)
    lineup = lineup_of(config, pool)
    space = space_of(config, lineup)
    found_by(config, space)
    for note in unfound_tasks(config.fitness):
        typer.echo(f"note: {note}", err=True)
    refuse_too_few(config.fitness)
    for warning in (*warnings_of(config), *repeats_in(pool)):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(
        f"{config.name}: ok (experts: {len(lineup.experts)}, layers: {lineup.layers}, genes: {len(space.genes)})"
    )


def plan(
    experiment: ExperimentArgument,
    *,
    probe: Annotated[
        bool, typer.Option("--probe", help="Score a few candidates on this machine, to tell the time.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=1e-6, help="What a candidate takes of one worker, to tell the time.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Show what a run will take: candidates, items, memory; and how long, from --probe or --seconds."""
    from rich.table import Table

    from evomerge.fitting import space_of
    from evomerge.guard import refuse_too_few, warnings_of
    from evomerge.plan import Pace, estimate_plan
    from evomerge.pools import lineup_of, open_pool, repeats_in

    config = load(experiment, set_)
    pool = open_pool(config)
    lineup = lineup_of(config, pool)
    refuse_too_few(config.fitness)
    for warning in (*warnings_of(config), *repeats_in(pool)):
        typer.echo(f"warning: {warning}", err=True)
    space, pace = space_of(config, lineup), None if seconds is None else Pace(seconds=seconds, source="as you say")
    if probe:
        pace = _probed(config, pool, lineup, space)
    table = Table(box=None, show_header=False)
    for name, value in estimate_plan(config, pool, lineup, space, pace):
        table.add_row(name, value)
    open_console().print(table)


def _probed(config: Experiment, pool: ModelPool, lineup: Lineup, space: SearchSpace) -> Pace:
    from tempfile import TemporaryDirectory

    from evomerge.probe import probe

    with TemporaryDirectory(prefix="evomerge-") as log:
        return probe(config, pool, lineup, space, Path(log))


def doctor() -> None:
    """Look at this machine: versions, devices, memory, and what is missing."""
    from rich.table import Table

    from evomerge.doctor import examine

    table = Table(box=None, show_header=False)
    for finding in examine():
        table.add_row(finding.state, finding.name, finding.found)
        if finding.fix:
            table.add_row("", "", f"to fix it: {finding.fix}")
    open_console().print(table)


def schema() -> None:
    """Print the JSON Schema of experiment files, for editors."""
    from evomerge.config import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(), indent=2))
