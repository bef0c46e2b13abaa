"""The verdict of a run on a terminal. Readable at 80 columns and in a pipe; knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evomerge.fitness import MEAN
from evomerge.reports.summary import Entry, Measure, Summary
from evomerge.reports.verdict import notable, verdict
from evomerge.reports.words import difference, mean_words, membership, number, percent, span

__all__ = ["print_verdict"]

_STYLES = {"better": "bold green", "unconfirmed": "bold magenta", "empty": "bold"}
_MOST_OBJECTIVES = 4
"""As many objective columns as fit in 80."""


def print_verdict(summary: Summary, console: Console, report: Path | None = None) -> None:
    """What was found, whether to believe it, the candidates worth a look, and what to do next.

    Args:
        summary: the run.
        console: where to print.
        report: the HTML report, if one was written.
    """
    found, cost = verdict(summary), summary.cost
    console.print(Text(found.headline, style=_STYLES.get(found.kind, "bold yellow")))
    console.print(Text(found.detail))
    if cost.unspent:
        console.print(Text(f"{cost.evaluations} of {cost.budget} evaluations: {cost.unspent}."))
    if summary.knee is not None:
        console.print(_scores(summary))
    if found.candidate is not None:
        console.print(_gains(summary, found.candidate, found.of))
    commands = summary.commands()
    lines = [f"Report:  {report or commands['report']}"]
    if found.take is not None:
        lines.append(f"Export:  {summary.export_command(found.take)}")
    for line in lines:  # a command that is broken over two lines cannot be copied
        console.print(Text(line), soft_wrap=True)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _scores(summary: Summary) -> Table:
    objectives = summary.objectives if len(summary.objectives) <= _MOST_OBJECTIVES else ()
    status = "confirmed" if summary.confirmation is not None else "estimated"
    table = _table()
    table.add_column(Text(status))
    if len(summary.objectives) > 1:
        table.add_column(Text(MEAN), justify="right")
    for objective in objectives:
        table.add_column(Text(objective.name + ("" if objective.goal == "max" else " (lower)")), justify="right")
    for entry, roles in notable(summary):
        table.add_row(_who(summary, entry, roles), *_cells(summary, entry, bool(objectives)))
    return table


def _who(summary: Summary, entry: Entry, roles: list[str]) -> Text:
    lines = [*roles, *membership(summary, entry)]
    return Text.assemble(entry.name, *(("\n  " + line, "dim") for line in lines))


def _cells(summary: Summary, entry: Entry, each: bool) -> Iterable[Text]:
    scores = entry.estimated if summary.confirmation is None else entry.confirmed
    if len(summary.objectives) > 1:
        yield _cell(scores.mean if scores else None)
    for index in range(len(summary.objectives) if each else 0):
        yield _cell(scores.each[index] if scores else None)


def _cell(measure: Measure | None) -> Text:
    if measure is None:
        return Text("-")
    if not measure.items:
        return Text(span(measure))
    half = max(measure.high - measure.mean, measure.mean - measure.low)
    return Text.assemble(number(measure.mean), (f"\n±{number(half)}", "dim"))


def _gains(summary: Summary, candidate: int, of: str) -> Table:
    table = _table()
    table.add_column(Text(f"gain of {summary.entries[candidate].name} over"))
    table.add_column(Text(f"in {mean_words(summary) if of == MEAN else of}, {percent(summary.level)} interval"))
    for gain in summary.confirmation.gains if summary.confirmation is not None else ():
        if gain.candidate == candidate and gain.of == of:
            table.add_row(Text(summary.entries[gain.anchor].name), Text(difference(gain.measure)))
    return table
