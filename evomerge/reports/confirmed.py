"""What the confirmation found: the front, gains with intervals, and items gained and lost against each parent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.fitness import ConfirmedFront, confirm_front
from evomerge.outcome import Responses
from evomerge.reports.summary import Confirmation, Entry, Exchange, Gain, Measure
from evomerge.reports.words import one_line

if TYPE_CHECKING:
    from evomerge.config import Experiment, Metric
    from evomerge.outcome import Answer

__all__ = ["confirmation"]


def confirmation(
    entries: Mapping[int, Entry], answers: Mapping[int, Sequence[Answer]], experiment: Experiment
) -> Confirmation | None:
    """The confirmed front; None if nobody was confirmed.

    Raises:
        TaskError: answers that do not belong to the objectives.
    """
    if not answers:
        return None
    anchors = {entry.name: entry.id for entry in entries.values() if entry.kind == "anchor" and entry.id in answers}
    excluded = {candidate for candidate in answers if entries[candidate].broken}
    found = confirm_front(answers, anchors, experiment.fitness.objectives, experiment.fitness.confirm.level, excluded)
    return Confirmation(
        front=tuple(found.members),
        probability=dict(found.probability),
        knee=found.knee,
        best=dict(found.best),
        gains=tuple(_gains(found, anchors)),
        exchanges=tuple(_exchanges(entries, answers, experiment)),
    )


def _gains(found: ConfirmedFront, anchors: Mapping[str, int]) -> Iterator[Gain]:
    for candidate, over in found.gains.items():
        for label, differences in over.items():
            for of, d in differences.items():
                measure = Measure(mean=d.mean, low=d.low, high=d.high, items=d.items)
                yield Gain(candidate=candidate, anchor=anchors[label], of=of, measure=measure)


def _exchanges(
    entries: Mapping[int, Entry], answers: Mapping[int, Sequence[Answer]], experiment: Experiment
) -> Iterator[Exchange]:
    metrics = list(dict.fromkeys(metric for o in experiment.fitness.objectives for metric in o.metrics))
    given = {i: _by_metric(each) for i, each in answers.items()}
    parents = [i for i in given if entries[i].kind == "anchor" and len(entries[i].recipe.models) == 1]
    for candidate in (i for i in given if entries[i].kind != "anchor"):
        for parent in parents:
            for metric in metrics:
                yield _exchange(candidate, parent, given, metric)


def _by_metric(answers: Sequence[Answer]) -> dict[tuple[str, str], dict[int, float]]:
    return {
        (answer.task, answer.metric): dict(zip(answer.items, answer.values, strict=True))
        for answer in answers
        if isinstance(answer, Responses)
    }


def _exchange(
    candidate: int, parent: int, given: Mapping[int, Mapping[tuple[str, str], Mapping[int, float]]], metric: Metric
) -> Exchange:
    key = metric.task, metric.metric
    ours, theirs = given[candidate][key], given[parent][key]
    common = np.array(sorted(ours.keys() & theirs.keys()))
    better = np.array([ours[i] - theirs[i] for i in common.tolist()]) * (1.0 if metric.goal == "max" else -1.0)
    return Exchange(
        candidate=candidate,
        anchor=parent,
        task=one_line(metric.task),
        metric=one_line(metric.metric),
        gained=tuple(common[better > 0].tolist()),
        lost=tuple(common[better < 0].tolist()),
        items=len(common),
    )
