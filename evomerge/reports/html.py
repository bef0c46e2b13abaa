"""The report of a run as one HTML file that opens offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.fitness import MEAN
from evomerge.reports.figures import Figure, front_cube, front_figures, history_figure, parallel_figure
from evomerge.reports.heatmaps import Heatmap, heatmap, heatmap_figure
from evomerge.reports.pages import render_page, write_page
from evomerge.reports.summarize import summarize
from evomerge.reports.summary import Entry, Summary
from evomerge.reports.words import difference, membership, number, objective_label, percent, span, verdict

if TYPE_CHECKING:
    from evomerge.runs import RunStore

__all__ = ["render", "write_report"]


def write_report(store: RunStore, out: Path) -> Path:
    """Write the report of a run; the file is there whole or not at all.

    Raises:
        MissingExtraError: plotly or Jinja2 is not installed.
        DiskError: the file cannot be written.
    """
    return write_page(render(summarize(store)), out)


def render(summary: Summary) -> str:
    """The page of a summary.

    Raises:
        MissingExtraError: plotly or Jinja2 is not installed.
    """
    recipes = _recipes(summary)
    found = verdict(summary)
    return render_page(
        "report.html.j2",
        {"number": number, "span": span, "difference": difference, "percent": percent},
        summary=summary,
        verdict=found,
        export=None if found.candidate is None else summary.export_command(found.candidate),
        objectives=[objective_label(objective) for objective in summary.objectives],
        finalists=_with_roles(summary, [*summary.finalists, *summary.anchors]),
        gains=_gains(summary),
        named=set(summary.picks.values()) | {found.candidate},
        recipes=recipes,
        figures=_figures(summary, recipes),
        config=json.dumps(summary.experiment, indent=2, default=str),
        data=summary.to_data(),
        MEAN=MEAN,
        membership=membership,
    )


def _figures(summary: Summary, recipes: list[dict[str, Any]]) -> dict[str, Figure]:
    """By the id of the element that each is drawn in."""
    figures = {f"front-{index}": figure for index, figure in enumerate(front_figures(summary))}
    others = {
        "cube": front_cube(summary),
        "history": history_figure(summary),
        "parallel": parallel_figure(summary),
    }
    figures |= {name: figure for name, figure in others.items() if figure is not None}
    return figures | _heatmap_figures(recipes)


def _with_roles(summary: Summary, entries: list[Entry]) -> list[tuple[Entry, str]]:
    """Each candidate once, with the names it goes by."""
    unique = {entry.id: entry for entry in [*(summary.entries[i] for i in summary.picks.values()), *entries]}
    return [(entry, ", ".join(n for n, i in summary.picks.items() if i == entry.id)) for entry in unique.values()]


def _gains(summary: Summary) -> list[dict[str, Any]]:
    """One row per finalist and anchor: the differences by objective, the mean first."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for gain in summary.confirmation.gains if summary.confirmation is not None else ():
        row = rows.setdefault((gain.candidate, gain.anchor), {"of": {}})
        row |= {"candidate": summary.entries[gain.candidate], "anchor": summary.entries[gain.anchor]}
        row["of"][gain.of] = gain.measure
    return list(rows.values())


def _recipes(summary: Summary) -> list[dict[str, Any]]:
    """Heat maps of the merged candidates that are worth a look; those that have a name come first."""
    entries = _with_roles(summary, list(summary.finalists))
    return [
        {
            "entry": entry,
            "roles": roles,
            "tables": {name: heatmap(entry.recipe, name) for name, _ in entry.recipe.parameters},
        }
        for entry, roles in entries
        if entry.kind != "anchor"
    ]


def _heatmap_figures(recipes: list[dict[str, Any]]) -> dict[str, Figure]:
    """One figure per candidate and parameter; the colours of a parameter mean the same for all candidates."""
    tables: dict[tuple[int, str], Heatmap] = {
        (recipe["entry"].id, name): table for recipe in recipes for name, table in recipe["tables"].items()
    }
    figures = {}
    for (candidate, name), table in tables.items():
        values = [v for (_, other), t in tables.items() if other == name for row in t.values for v in row]
        if not table.constant:
            figures[f"heat-{candidate}-{name}"] = heatmap_figure(table, min(values), max(values))
    return figures
