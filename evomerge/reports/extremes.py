"""Floor and ceiling effects: all models answer none of an objective's items, or all of them. Knows nothing of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from evomerge.reports.summary import Entry, Objective

__all__ = ["Extreme", "extreme_warnings", "extremes"]

Extreme = Literal["floor", "ceiling"]

_EXTREMES: dict[float, Extreme] = {0.0: "floor", 1.0: "ceiling"}


def extremes(entries: Iterable[Entry], objectives: Sequence[Objective]) -> dict[str, Extreme]:
    """Objectives that tell no model from another, by name: each scores 0 (`floor`), or each scores 1 (`ceiling`).

    Speaks of unseen items where some model was asked them. Costs, and objectives of which less is better, have no such
    ends; nor has a single model anything to be told from.
    """
    found = [*entries]
    scores = [e.confirmed for e in found if e.confirmed] or [e.estimated for e in found if e.estimated]
    ends = {}
    for number, objective in enumerate(objectives):
        measures = [score.each[number] for score in scores]
        means = {measure.mean for measure in measures}
        if objective.goal == "max" and len(measures) > 1 and len(means) == 1 and measures[0].items:
            ends[objective.name] = _EXTREMES.get(means.pop())
    return {name: end for name, end in ends.items() if end is not None}


def extreme_warnings(entries: Iterable[Entry], objectives: Sequence[Objective]) -> Iterator[str]:
    """One line for each such objective: what is the matter with it, most likely."""
    for name, end in extremes(entries, objectives).items():
        if end == "floor":
            yield (
                f"no model answers any item of {name!r}: most likely its prompts, or the form of its answers, do not "
                "suit these models (a space before the answer, a chat template); let one of them write on after a "
                "prompt, and compare"
            )
        else:
            yield f"every model answers every item of {name!r}, so it tells none from another; ask harder questions"
