"""Figures as plotly specifications in plain data. Pure functions of a summary.

Text inside figures is escaped, because plotly reads some HTML in it. Knows nothing of pages and themes: grounds are
transparent, and the page colours text and grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import combinations
from textwrap import wrap
from typing import Any

from evomerge.fitness import MEAN
from evomerge.reports.groups import BLUE, Group, groups
from evomerge.reports.summary import Entry, Objective, Scores, Summary
from evomerge.reports.words import objective_label, span

__all__ = ["Figure", "front_cube", "front_figures", "history_figure", "layout", "parallel_figure"]

Figure = dict[str, Any]
"""A plotly figure: `{"data": [...], "layout": {...}}`."""

_MOST_NAMES = 24
"""As many names as can be told apart along one axis."""


def layout(**own: Any) -> dict[str, Any]:
    """What all figures share, and what this one has of its own."""
    ground = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top"}
    return ground | {"margin": {"l": 60, "r": 15, "t": 25, "b": 55}, "legend": legend, "height": 440} | own


def front_figures(summary: Summary) -> tuple[Figure, ...]:
    """One scatter per pair of objectives; with one objective, its value per candidate. None before the first score."""
    drawn = groups(summary)
    if not drawn:
        return ()
    if len(summary.objectives) == 1:
        return (_strip(summary, drawn),)
    pairs = combinations(range(len(summary.objectives)), 2)
    return tuple(_scatter(summary, drawn, first, second) for first, second in pairs)


def _scatter(summary: Summary, drawn: Sequence[Group], first: int, second: int) -> Figure:
    traces = [_marks(summary, group) | _axis(group, "x", first) | _axis(group, "y", second) for group in drawn]
    axes = {"xaxis": _title(summary.objectives[first]), "yaxis": _title(summary.objectives[second])}
    return {"data": traces, "layout": layout(**axes)}


def _strip(summary: Summary, drawn: Sequence[Group]) -> Figure:
    traces = [
        _marks(summary, group) | {"x": [entry.id for entry, _ in group.members]} | _axis(group, "y", 0)
        for group in drawn
    ]
    axes = {"xaxis": {"title": {"text": "candidate number"}}, "yaxis": _title(summary.objectives[0])}
    return {"data": traces, "layout": layout(**axes)}


def _marks(summary: Summary, group: Group) -> dict[str, Any]:
    """What a trace of this group has in every dimension."""
    symbol = group.shape if group.confirmed else f"{group.shape}-open"
    return {
        "type": "scatter",
        "name": group.name,
        "mode": "markers+text" if group.labels else "markers",
        "text": [escape(entry.name) if group.labels else "" for entry, _ in group.members],
        "textposition": "top center",
        "hovertext": [_hover(summary, group, entry, scores) for entry, scores in group.members],
        "hoverinfo": "text",
        "marker": {"symbol": symbol, "color": group.color, "size": group.size},
    }


def _hover(summary: Summary, group: Group, entry: Entry, scores: Scores) -> str:
    measures = zip(summary.objectives, scores.each, strict=True)
    lines = [f"{escape(objective.name)}: {span(measure)}, {measure.items} items" for objective, measure in measures]
    recipe = [escape(line) for line in wrap(entry.description, 60)]
    return "<br>".join([f"<b>{escape(entry.name)}</b> ({group.name})", *lines, *recipe])


def _axis(group: Group, letter: str, objective: int) -> dict[str, Any]:
    """Coordinates along one axis, with error bars where the group has them."""
    measures = [scores.each[objective] for _, scores in group.members]
    axis: dict[str, Any] = {letter: [measure.mean for measure in measures]}
    if group.intervals:
        axis[f"error_{letter}"] = {
            "type": "data",
            "symmetric": False,
            "array": [measure.high - measure.mean for measure in measures],
            "arrayminus": [measure.mean - measure.low for measure in measures],
            "thickness": 1,
            "width": 0,
        }
    return axis


def _title(objective: Objective) -> dict[str, Any]:
    return {"title": {"text": escape(objective_label(objective))}}


def front_cube(summary: Summary) -> Figure | None:
    """The front in three dimensions; None unless there are exactly three objectives."""
    if len(summary.objectives) != 3:
        return None
    axes = {
        f"{letter}axis": {"title": {"text": escape(objective.name)}}
        for letter, objective in zip("xyz", summary.objectives, strict=True)
    }
    traces = [_cube_trace(summary, group) for group in groups(summary)]
    return {"data": traces, "layout": layout(scene=axes, showlegend=False, margin={"l": 0, "r": 0, "t": 0, "b": 0})}


def _cube_trace(summary: Summary, group: Group) -> dict[str, Any]:
    marks = _marks(summary, group)
    marks["marker"]["size"] = max(3, group.size // 2)
    if group.shape == "star":  # not among the symbols of three-dimensional scatters
        marks["marker"]["symbol"] = "cross"
    coordinates = (_axis(group, letter, index) for index, letter in enumerate("xyz"))
    return marks | {"type": "scatter3d"} | {key: value for axis in coordinates for key, value in axis.items()}


def history_figure(summary: Summary) -> Figure | None:
    """Hypervolume of the estimated front against evaluations; None before the first one."""
    if summary.history is None:
        return None
    values = list(summary.history.hypervolume)
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if len(values) == 1 else "lines",
        "x": list(range(1, len(values) + 1)),
        "y": values,
        "line": {"color": BLUE, "shape": "hv", "width": 2},
    }
    titles = {"xaxis": {"title": {"text": "evaluations"}}, "yaxis": {"title": {"text": "hypervolume"}}}
    return {"data": [trace], "layout": layout(height=320, showlegend=False, **titles)}


def parallel_figure(summary: Summary) -> Figure | None:
    """Parallel coordinates of the objectives; up is better on every axis, colours are those of the front.

    Finalists and anchors by confirmed values, or every candidate by estimates while nothing is confirmed. None with one
    objective, or with fewer than two candidates.
    """
    drawn = [group for group in groups(summary) if group.confirmed == (summary.confirmation is not None)]
    rows = [(entry, scores) for group in drawn for entry, scores in group.members]
    if len(summary.objectives) == 1 or len(rows) < 2:
        return None
    dimensions = [
        *_names([entry for entry, _ in rows]),
        *(_dimension(o, [scores.each[k].mean for _, scores in rows]) for k, o in enumerate(summary.objectives)),
        {"label": f"{MEAN} ↑", "values": [scores.mean.mean for _, scores in rows]},
    ]
    trace = {"type": "parcoords", "dimensions": dimensions, "line": _group_colors(drawn)}
    return {"data": [trace], "layout": layout(height=380, margin={"l": 90, "r": 50, "t": 50, "b": 25})}


def _group_colors(drawn: Sequence[Group]) -> dict[str, Any]:
    """One colour per line: plotly wants numbers and a scale, so each group has a number and a step of the scale."""
    steps = len(drawn)
    scale = [[(step + end) / steps, group.color] for step, group in enumerate(drawn) for end in (0, 1)]
    color = [step for step, group in enumerate(drawn) for _ in group.members]
    return {"color": color, "colorscale": scale, "cmin": -0.5, "cmax": steps - 0.5, "showscale": False}


def _names(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    if len(entries) > _MOST_NAMES:
        return []
    positions = list(range(len(entries)))
    names = [escape(entry.name) for entry in entries]
    return [{"label": "candidate", "values": positions, "tickvals": positions, "ticktext": names}]


def _dimension(objective: Objective, values: list[float]) -> dict[str, Any]:
    low, high = min(values), max(values)
    pad = 0.02 * (high - low) or 0.01
    up = objective.goal == "max"
    ends = [low - pad, high + pad] if up else [high + pad, low - pad]
    return {"label": f"{escape(objective.name)} {'↑' if up else '↓'}", "values": values, "range": ends}
