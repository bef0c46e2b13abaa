"""Commands about item banks: fitting one from runs or from others' responses, looking at one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evomerge.cli import completion
from evomerge.cli.options import ExperimentOption, SetOption, load, open_console

if TYPE_CHECKING:
    from evomerge.fitness.irt import ItemBank

__all__ = ["bank"]

bank = typer.Typer(
    name="bank",
    help="Item banks: what is known of a task's items, so that a search needs fewer of them.",
    no_args_is_help=True,
)

TaskOption = typer.Option("--task", metavar="TASK", help="The task.")
ResponsesOption = Annotated[
    bool, typer.Option(help="Keep the responses, so that a run can fit the bank again with its own.")
]


@bank.command()
def fit(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", autocompletion=completion.runs)],
    out: Annotated[Path, typer.Option(help="The new .npz file; a folder for all tasks and metrics of the runs.")],
    task: Annotated[str | None, TaskOption] = None,
    *,
    responses: ResponsesOption = True,
) -> None:
    """Fit item banks from the candidates of runs, one per task and metric."""
    from evomerge.banks import fit_banks, write_bank

    found = fit_banks(runs, task)
    if out.suffix == ".npz" and len(found) > 1:
        names = ", ".join(f"{each.task} ({each.metric})" for each in found)
        raise typer.BadParameter(f"expected a folder for {names}; or choose with --task", param_hint="--out")
    for each in found:
        path = out if out.suffix == ".npz" else out / f"{each.task}.{each.metric}.npz".replace("/", "_")
        write_bank(each, path, responses=responses)
        typer.echo(_wrote(each, path))


@bank.command(name="import")
def import_(
    matrix: Annotated[Path, typer.Argument(metavar="MATRIX", help="A .csv, an .npz, or a folder of lm-eval samples.")],
    task: Annotated[str, TaskOption],
    experiment: ExperimentOption,
    out: Annotated[Path, typer.Option(help="The new .npz file.")],
    *,
    metric: Annotated[str | None, typer.Option(help="Which of the task's metrics, if several are measured.")] = None,
    set_: SetOption = None,
    responses: ResponsesOption = True,
) -> None:
    """Fit an item bank from any response matrix: rows are models, columns item ids of the experiment's task."""
    from evomerge.banks import import_bank, write_bank

    found = import_bank(matrix, load(experiment, set_), task, metric)
    write_bank(found.bank, out, responses=responses)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(_wrote(found.bank, out))


@bank.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An item bank, or a folder of some.")],
) -> None:
    """Show what item banks hold."""
    from rich.table import Table

    from evomerge.banks import describe_bank
    from evomerge.fitness.irt import load_bank

    for path in (sorted(file.glob("*.npz")) if file.is_dir() else ()) or (file,):
        table = Table(box=None, show_header=False)
        for name, value in describe_bank(load_bank(path)):
            table.add_row(name, value)
        open_console().print(table)


def _wrote(found: ItemBank, path: Path) -> str:
    return f"wrote {path}: {found.calibrators} models x {len(found.items)} items of {found.task} ({found.metric})"
