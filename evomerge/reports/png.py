"""The front as a PNG file, for papers and pull requests. The only file that imports matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import DiskError, require
from evomerge.reports.groups import COLORS, Group, groups
from evomerge.reports.summary import Summary
from evomerge.reports.words import objective_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_png"]

_MARKERS = {"circle": "o", "diamond": "D", "star": "*"}


def write_png(summary: Summary, out: Path) -> Path:
    """Write the front, one panel per pair of objectives; with one objective, its value per candidate.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DiskError: the file cannot be written.
    """
    require("matplotlib", "report")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs: Sequence[tuple[int | None, int]] = [*combinations(range(len(summary.objectives)), 2)] or [(None, 0)]
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(4.6 * columns, 4 * rows + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for index, (first, second) in enumerate(pairs):
        _panel(figure.add_subplot(rows, columns, index + 1), summary, first, second)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    partial = out.with_name(out.name + ".partial")
    try:
        figure.savefig(partial, format="png")
        os.replace(partial, out)
    except OSError as error:
        raise DiskError(
            f"{out}: expected to write a picture there; got {error.strerror}; choose another --png"
        ) from error
    return out


def _panel(axes: Axes, summary: Summary, first: int | None, second: int) -> None:
    for group in groups(summary):
        _draw(axes, group, first, second)
    label = "candidate number" if first is None else _plain(objective_label(summary.objectives[first]))
    axes.set_xlabel(label, fontsize="small")
    axes.set_ylabel(_plain(objective_label(summary.objectives[second])), fontsize="small")
    axes.grid(alpha=0.25)


def _draw(axes: Axes, group: Group, first: int | None, second: int) -> None:
    xs = [float(entry.id) if first is None else scores.each[first].mean for entry, scores in group.members]
    ys = [scores.each[second].mean for _, scores in group.members]
    axes.errorbar(
        xs,
        ys,
        xerr=None if first is None else _bars(group, first),
        yerr=_bars(group, second),
        label=group.name,
        fmt=_MARKERS[group.shape],
        markersize=group.size * 0.6,
        color=COLORS[group.color],
        markerfacecolor=COLORS[group.color] if group.confirmed else "none",
        elinewidth=0.7,
    )
    for (entry, _), x, y in zip(group.members if group.labels else (), xs, ys, strict=False):
        axes.annotate(_plain(entry.name), (x, y), textcoords="offset points", xytext=(5, 5), fontsize="x-small")


def _bars(group: Group, objective: int) -> list[list[float]] | None:
    if not group.intervals:
        return None
    measures = [scores.each[objective] for _, scores in group.members]
    return [[m.mean - m.low for m in measures], [m.high - m.mean for m in measures]]


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read mathematics between dollar signs
