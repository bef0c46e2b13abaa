"""Where a run of many results stands, from counts alone: what `status` shows when reading them all would take long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evomerge.reports.words import one_line
from evomerge.runs import holder

if TYPE_CHECKING:
    from evomerge.runs import RunStore

__all__ = ["MANY", "print_standing"]

MANY = 20_000
"""Results from which on a status is counted instead of estimated."""


def print_standing(store: RunStore, counts: dict[str, int], console: Console) -> None:
    """Progress, failures and cost of a run.

    Args:
        store: the run.
        counts: `store.counts()`.
        console: where to print.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, value in _rows(store, counts):
        table.add_row(Text(name, style="dim"), Text(value))
    console.print(table)


def _rows(store: RunStore, counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    experiment = store.experiment
    state = store.meta("state") or "stopped"
    attempts = [f"{count:,} {name.split()[1]}" for name, count in counts.items() if name.startswith("attempt ")]
    driver = json.loads(store.meta("driver") or "{}")
    yield "run", one_line(f"{experiment['name']} in {store.folder}")
    yield "state", "stopped" if state == "running" and holder(store.folder) is None else state
    yield "candidates", f"{counts['candidates']:,} of {experiment['budget']['evaluations']:,}"
    yield "results", f"{counts['results']:,} ({counts['copied']:,} copied from equal recipes)"
    yield "confirmed", f"{counts['confirmed']:,} candidates on unseen items"
    yield "failed", f"{counts['failures']:,}"
    yield "attempts", ", ".join(attempts) or "none"
    yield "wall time", f"{driver.get('wall_seconds', 0.0):.1f} s"
    yield "scores", f"in the report, which reads all results: evomerge report {store.folder}"
