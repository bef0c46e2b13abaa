"""What was measured of a pool, as tables on a terminal. Readable at 80 columns and in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evomerge.merging.alarms import RELATED, alarms, clusters
from evomerge.merging.kinship import Kinship
from evomerge.recipe import ROLES

__all__ = ["change", "print_kinship", "summary_lines"]


def change(norm: float) -> str:
    """A relative change in per cent, three digits: `5.42`."""
    return f"{100 * norm:.3g}"


def summary_lines(kinship: Kinship) -> list[str]:
    """Alarms, or that there are none; then the clusters."""
    related = [", ".join(group) for group in clusters(kinship) if len(group) > 1]
    joined = (
        f"close relatives (cosine {RELATED} or more): {'; '.join(related)}; merge across such groups for new skills"
    )
    none = f"no close relatives: every cosine of two task vectors is below {RELATED}"
    return [*([f"alarm: {line}" for line in alarms(kinship)] or ["no alarms"]), joined if related else none]


def print_kinship(kinship: Kinship, console: Console) -> None:
    """Alarms and clusters, changes by module role, cosines, and sign conflicts by layer.

    Args:
        kinship: what was measured.
        console: where to print.
    """
    for line in summary_lines(kinship):
        console.print(Text(line, style="bold yellow" if line.startswith("alarm") else ""))
    for table in (_changes(kinship), _cosines(kinship), _layers(kinship)):
        console.print()
        console.print(table)


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="dim", box=None, pad_edge=False, padding=(0, 2, 0, 0),
        header_style="bold",
    )  # fmt: skip
    table.add_column(Text(first))
    for column in columns:
        table.add_column(Text(column), justify="right", overflow="fold")
    return table


def _changes(kinship: Kinship) -> Table:
    roles = {role: kinship.roles[role] for role in ROLES if role in kinship.roles}
    table = _table("Change, in % of the base's norm", "expert", ["all", *roles])
    for index, name in enumerate(kinship.experts):
        cells = [kinship.total, *roles.values()]
        table.add_row(Text(name), *(change(cell.norm(index)) for cell in cells))
    return table


def _cosines(kinship: Kinship) -> Table:
    count = len(kinship.experts)
    table = _table("Cosine of task vectors", "expert", [str(number) for number in range(1, count + 1)])
    for index, name in enumerate(kinship.experts):
        table.add_row(Text(f"{index + 1} {name}"), *(f"{kinship.total.cosine(index, at):.2f}" for at in range(count)))
    return table


def _layers(kinship: Kinship) -> Table:
    chance = 1 - 2.0 ** (1 - len(kinship.experts))
    title = f"By depth: elements whose changes conflict in sign (by chance {100 * chance:.0f} %), and change in %"
    table = _table(title, "layer", ["conflicts", *kinship.experts])
    rows = {str(layer): cell for layer, cell in kinship.layers.items()} | {"all": kinship.total}
    for name, cell in rows.items():
        norms = (change(cell.norm(index)) for index in range(len(kinship.experts)))
        table.add_row(name, f"{100 * cell.conflict_share:.1f} %", *norms)
    return table
