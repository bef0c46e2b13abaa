"""The report of a run as one HTML file that opens offline."""

from __future__ import annotations

import json
import shlex
from itertools import combinations
from pathlib import Path
from typing import Any

from evomerge.fitness import MEAN
from evomerge.reports.data import to_data
from evomerge.reports.groups import COLORS, groups
from evomerge.reports.pages import render_page, write_page
from evomerge.reports.summary import Entry, Summary
from evomerge.reports.verdict import notable, verdict
from evomerge.reports.words import difference, duration, membership, number, objective_label, percent, span

__all__ = ["render", "write_report"]

_SCRIPTS = (
    "dom",
    "heat",
    "state",
    "scatter",
    "cube",
    "chooser",
    "recipes",
    "lines",
    "parallel",
    "lineage",
    "candidates",
)
"""In the order in which they need each other."""

_MOST_TRIES = 500
_MOST_NUMBERS = 20


def write_report(summary: Summary, out: Path) -> Path:
    """Write the report of a run; the file is there whole or not at all.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        DiskError: the file cannot be written.
    """
    return write_page(render(summary), out)


def render(summary: Summary) -> str:
    """The page of a summary.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    found = verdict(summary)
    drawn = groups(summary)
    return render_page(
        "report.html.j2",
        {"number": number, "span": span, "difference": difference, "percent": percent},
        summary=summary,
        verdict=found,
        export=None if found.take is None else summary.export_command(found.take),
        confirmed_items=_confirmed_items(summary),
        worker_hours=duration(sum(summary.cost.seconds.values())),
        objectives=[objective_label(objective) for objective in summary.objectives],
        pairs=[*combinations(range(len(summary.objectives)), 2)] or [("", 0)],
        notable=[(entry, ", ".join(roles)) for entry, roles in notable(summary)],
        finalists=_with_roles(summary, [*summary.finalists, *summary.anchors]),
        gains=sorted(_gains(summary), key=lambda gain: gain["candidate"].id != found.candidate),
        named=set(summary.picks.values()) | {found.candidate},
        groups=drawn,
        colors=COLORS,
        algorithm=summary.experiment["algorithm"]["kind"],
        lineage=any(entry.parents for entry in summary.entries.values()),
        failures=_failures(summary),
        tries=summary.tries[-_MOST_TRIES:],
        config=json.dumps(summary.experiment, indent=2, default=str),
        data=to_data(summary),
        page=_page(summary, found.take),
        scripts=[f"{name}.js" for name in _SCRIPTS],
        MEAN=MEAN,
        membership=membership,
    )


def _page(summary: Summary, recommended: int | None) -> dict[str, Any]:
    """What the scripts need beside the data: how candidates are drawn, and how they are called on a command line."""
    drawn = ("name", "confirmed", "shape", "color", "size", "intervals", "labels")
    marks = [
        {name: getattr(group, name) for name in drawn} | {"ids": [entry.id for entry, _ in group.members]}
        for group in groups(summary)
    ]
    return {
        "groups": marks,
        "labels": [objective_label(objective) for objective in summary.objectives],
        "export": summary.export_command(-1).removesuffix("-1"),
        "names": {candidate: shlex.quote(name) for name, candidate in reversed(summary.picks.items())},
        "choice": summary.picks.get("knee") if recommended is None else recommended,
    }


def _confirmed_items(summary: Summary) -> int:
    return max((e.confirmed.mean.items for e in summary.entries.values() if e.confirmed is not None), default=0)


def _with_roles(summary: Summary, entries: list[Entry]) -> list[tuple[Entry, str]]:
    """Each candidate once, with the names it goes by; those that have one come first."""
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


def _failures(summary: Summary) -> list[dict[str, str]]:
    """One row per reason, the most frequent first."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for failure in summary.failures:
        rows.setdefault((failure.phase, failure.stage, failure.reason), []).append(failure.candidate)
    return [
        {"phase": phase, "stage": stage, "reason": reason, "candidates": _listed(numbers)}
        for (phase, stage, reason), numbers in sorted(rows.items(), key=lambda row: -len(row[1]))
    ]


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(f"#{number}" for number in numbers[:_MOST_NUMBERS])
    more = len(numbers) - _MOST_NUMBERS
    return f"{shown} and {more} more" if more > 0 else shown
