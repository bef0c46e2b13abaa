"""What is told of a run: numbers by name at steps. Pure; knows no library."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.pareto import hypervolume
from evomerge.reports import Standing, Summary
from evomerge.reports.chronicle import corner
from evomerge.reports.summary import Scores

__all__ = ["Point", "confirmed_points", "points_of"]

Point = tuple[int, dict[str, float]]
"""A step, which is the number of a result in order of completion, from 1; and numbers by name."""


def points_of(standing: Standing, after: int) -> Iterator[Point]:
    """What is new since a step: the scores of each candidate, and at the last of them where the run stands.

    Args:
        standing: the run.
        after: the last step that was told.
    """
    steps = sorted((seq + 1, candidate) for candidate, seq in standing.fresh.items() if seq + 1 > after)
    for step, candidate in steps:
        values = {} if candidate in standing.anchors else _values("score", standing, standing.scores[candidate])
        if (step, candidate) == steps[-1]:
            values |= _totals(standing)
        if values:
            yield step, values


def confirmed_points(standing: Standing, summary: Summary, after: int) -> Iterator[Point]:
    """What a finished run is proud of, on items that the search never saw."""
    values: dict[str, float] = {}
    for name, candidate in summary.picks.items():
        scores = summary.entries[candidate].confirmed
        if summary.confirmation is not None and scores is not None:
            values |= _values(f"confirmed/{name.replace(':', '-')}", standing, scores)
    if values:
        yield after + 1, values


def _values(prefix: str, standing: Standing, scores: Scores) -> dict[str, float]:
    each = zip(standing.objectives, scores.each, strict=True)
    return {f"{prefix}/mean": scores.mean.mean} | {f"{prefix}/{o.name}": measure.mean for o, measure in each}


def _totals(standing: Standing) -> dict[str, float]:
    found = {
        "front/members": float(len(standing.front)),
        "run/failed": float(standing.failed),
        "run/items": float(standing.items),
        "run/tokens": float(standing.tokens),
    }
    reference = corner(_costs(standing, standing.anchors & standing.scores.keys()))
    if reference:
        found["front/hypervolume"] = hypervolume([*_costs(standing, standing.front)], reference)
    if standing.best is not None:
        found["front/best mean"] = standing.scores[standing.best].mean.mean
    return found


def _costs(standing: Standing, candidates: frozenset[int] | tuple[int, ...]) -> Iterator[list[float]]:
    for candidate in candidates:
        each = zip(standing.objectives, standing.scores[candidate].each, strict=True)
        yield [objective.cost(measure.mean) for objective, measure in each]
