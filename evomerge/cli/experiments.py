"""Commands about experiments and the machine: what is written, checked and known before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import ExperimentArgument, ExpertOption, SetOption, load, named_paths, open_console

__all__ = ["check", "doctor", "init", "plan", "schema"]


def init(
    file: Annotated[Path, typer.Argument(help="The experiment file to write.")],
    base: Annotated[Path, typer.Option(help="Folder of the base model.")],
    expert: Annotated[list[str], ExpertOption],
    task: Annotated[list[Path], typer.Option(help="An lm-eval task YAML, or a folder of them. May be repeated.")],
) -> None:
    """Write a commented experiment file for your own models and tasks."""
    from evomerge.starter import write_starter

    write_starter(file, base, named_paths(expert), task)
    typer.echo(f"wrote {file}; next: evomerge check {file}")


def check(experiment: ExperimentArgument, set_: SetOption = None) -> None:
    """Check an experiment, its models, its search space and the names of its tasks, without running anything."""
    from evomerge.guard import warnings_of
    from evomerge.opening import space_of
    from evomerge.pools import lineup_of, open_pool
    from evomerge.starter import unknown_tasks

    config = load(experiment, set_)
    lineup = lineup_of(config, open_pool(config))
    genes = len(space_of(config, lineup).genes)
    for note in unknown_tasks(config.fitness):
        typer.echo(f"note: {note}", err=True)
    for warning in warnings_of(config):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{config.name}: ok (experts: {len(lineup.experts)}, layers: {lineup.layers}, genes: {genes})")


def plan(experiment: ExperimentArgument, set_: SetOption = None) -> None:
    """Show what a run will take: candidates, items, memory."""
    from rich.table import Table

    from evomerge.guard import warnings_of
    from evomerge.opening import space_of
    from evomerge.plan import estimate_plan
    from evomerge.pools import lineup_of, open_pool

    config = load(experiment, set_)
    pool = open_pool(config)
    lineup = lineup_of(config, pool)
    for warning in warnings_of(config):
        typer.echo(f"warning: {warning}", err=True)
    table = Table(box=None, show_header=False)
    for name, value in estimate_plan(config, pool, lineup, space_of(config, lineup)):
        table.add_row(name, value)
    open_console().print(table)


def doctor() -> None:
    """Look at this machine: versions, devices, memory, and what is missing."""
    from rich.table import Table

    from evomerge.doctor import examine

    table = Table(box=None, show_header=False)
    for finding in examine():
        table.add_row(finding.state, finding.name, f"{finding.found}{f'; {finding.fix}' if finding.fix else ''}")
    open_console().print(table)


def schema() -> None:
    """Print the JSON Schema of experiment files, for editors."""
    from evomerge.config import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(), indent=2))
