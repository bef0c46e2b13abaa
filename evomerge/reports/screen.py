"""What a run looks like on a terminal while it goes on, and what `status` shows of it once.

Pure: from a `Standing` to something that rich prints, 80 columns wide. Knows nothing of clocks, files or terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evomerge.fitness import MEAN
from evomerge.reports.standing import Standing
from evomerge.reports.summary import Measure
from evomerge.reports.words import duration, number, span

__all__ = ["screen"]

_ROWS = 5
"""Members of the front, and workers, that are shown."""

_MOST_OBJECTIVES = 4
"""As many objective columns as fit in 80."""


def screen(
    standing: Standing, *, doing: str = "", done: int | None = None, planned: int | None = None, bar: bool = True
) -> RenderableType:
    """Progress, pace, the estimated front, workers, failures and cost.

    Args:
        standing: the run.
        doing: what it does at this moment; its state if left out.
        done: how far that is; candidates of the search if left out.
        planned: how far it goes; likewise.
        bar: draw the progress; on a pipe a bar without colours says nothing.
    """
    head = Text.assemble((standing.name, "bold"), f" in {standing.folder}: {doing or standing.state}")
    done, planned = standing.done if done is None else done, planned or standing.planned
    progress = Table.grid(padding=(0, 1))
    line = Text(", ".join(_progress(standing, done, planned)))
    progress.add_row(*([ProgressBar(total=planned, completed=done, width=24)] if bar else []), line)
    parts: list[RenderableType] = [head, progress]
    if standing.front:
        parts += ["", _front(standing)]
    return Group(*parts, "", _rows(standing))


def _progress(standing: Standing, done: int, planned: int) -> Iterator[str]:
    yield f"{done:,} of {planned:,}"
    if standing.pace is not None:
        yield f"{standing.pace:,.0f} candidates an hour" if standing.pace >= 10 else f"{standing.pace:.1f} an hour"
        left = planned - done
        if standing.state == "running" and not standing.confirmed and left > 0:
            yield f"{duration(3600 * left / standing.pace)} left, then the confirmation"


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _front(standing: Standing) -> Table:
    """The best of the estimated front, and the best anchor to compare with."""
    table = _table()
    table.add_column(Text("estimated front"), no_wrap=True)
    several = len(standing.objectives) > 1
    objectives = standing.objectives if len(standing.objectives) <= _MOST_OBJECTIVES else ()
    for name in ([MEAN] if several else []) + [o.name + ("" if o.goal == "max" else " (lower)") for o in objectives]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for candidate, who in _shown(standing):
        scores = standing.scores[candidate]
        first, *rest = ([scores.mean] if several else []) + [scores.each[index] for index in range(len(objectives))]
        table.add_row(Text(who), Text(_with_interval(first)), *(Text(number(measure.mean)) for measure in rest))
    return table


def _shown(standing: Standing) -> Iterator[tuple[int, str]]:
    best = standing.best
    for candidate in standing.front[:_ROWS]:
        yield candidate, f"{standing.names[candidate]}{' best so far' if candidate == best else ''}"
    anchors = [candidate for candidate in standing.anchors if candidate in standing.scores]
    anchor = max(anchors, key=lambda candidate: standing.scores[candidate].mean.mean, default=None)
    if best is not None and best not in standing.front[:_ROWS]:
        yield best, f"{standing.names[best]} best so far"
    if anchor is not None and anchor not in standing.front[:_ROWS]:
        yield anchor, f"{standing.names[anchor]} best anchor"


def _with_interval(measure: Measure) -> str:
    half = max(measure.high - measure.mean, measure.mean - measure.low)
    return f"{number(measure.mean)} ±{number(half)}" if measure.items else span(measure)


def _rows(standing: Standing) -> Table:
    table = _table()
    table.show_header = False
    table.add_column("", style="dim", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, value in _facts(standing):
        table.add_row(Text(name), Text(value))
    return table


def _facts(standing: Standing) -> Iterable[tuple[str, str]]:
    if standing.front:
        yield "front", f"{len(standing.front)} members, by estimates that favour the lucky; the end confirms them"
    elif standing.done:
        yield "scores", f"in the report, which reads all results: evomerge report {standing.folder}"
    rest = f"; {standing.unspent}" if standing.unspent else ""
    copied = f"({standing.copied:,} copied from equal recipes)"
    yield "evaluations", f"{standing.done:,} of {standing.planned:,} {copied}{rest}"
    yield "generations", f"{standing.generations:,}"
    yield "confirmed", f"{standing.confirmed:,} candidates on unseen items"
    busiest = sorted(standing.workers.items(), key=lambda pair: -pair[1].jobs)
    for name, labour in busiest[:_ROWS]:
        yield f"worker {name}", f"{labour.jobs:,} jobs, {duration(labour.seconds / labour.jobs)} each"
    if len(busiest) > _ROWS:
        yield "workers", f"{len(busiest)} in all"
    yield "attempts", ", ".join(f"{count:,} {status}" for status, count in sorted(standing.attempts.items())) or "none"
    yield "asked", f"{standing.items:,} items, {standing.tokens:,} tokens read and written"
    yield "wall time", duration(standing.wall_seconds)
    if standing.rewritten is not None:
        yield "weights rewritten", f"{100 * standing.rewritten:.0f} % of the model for a candidate, on average"
    if standing.audit:
        yield "audit", standing.audit
    yield "failed", f"{standing.failed:,}"
    for failure in standing.failures:
        yield f"failed #{failure.candidate}", f"{failure.stage}: {failure.reason}"
