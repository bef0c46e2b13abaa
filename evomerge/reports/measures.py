"""From what a candidate answered to measures with intervals, each in its metric's own direction."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from evomerge.fitness import Estimate, Told, scores_and_mean
from evomerge.fitness.estimate import weights
from evomerge.reports.summary import Measure, Scores

if TYPE_CHECKING:
    from evomerge.config import Experiment
    from evomerge.outcome import Answer

__all__ = ["believed_scores", "measured_scores"]


def measured_scores(answers: Sequence[Answer], experiment: Experiment) -> Scores:
    """Means of what was answered.

    Raises:
        TaskError: answers that do not belong to the objectives.
    """
    objectives, level = experiment.fitness.objectives, experiment.fitness.confirm.level
    each, mean = scores_and_mean(answers, objectives)
    return Scores(
        mean=_measure(mean, level),
        each=tuple(_measure(e, level, minimized=o.goal == "min") for o, e in zip(objectives, each, strict=True)),
    )


def believed_scores(told: Told, experiment: Experiment) -> Scores:
    """Estimates that a model of items made, objectives taken as independent."""
    objectives, level = experiment.fitness.objectives, experiment.fitness.confirm.level
    share = weights(objectives)
    mean = float(share @ np.array(told.scores))
    sd = float(np.sqrt(share**2 @ np.square(told.sds)))
    triples = [
        (o, score, sd, 0 if o.cost else told.items)
        for o, score, sd in zip(objectives, told.scores, told.sds, strict=True)
    ]
    return Scores(
        mean=_believed(mean, sd, told.items, level),
        each=tuple(_believed(score, sd, items, level, minimized=o.goal == "min") for o, score, sd, items in triples),
    )


def _believed(score: float, sd: float, items: int, level: float, *, minimized: bool = False) -> Measure:
    half, sign = NormalDist().inv_cdf((1.0 + level) / 2.0) * sd, -1.0 if minimized else 1.0
    return Measure(mean=sign * score, low=sign * score - half, high=sign * score + half, items=items)


def _measure(estimate: Estimate, level: float, *, minimized: bool = False) -> Measure:
    """Estimates are scores, higher is better; a minimized metric gets its own direction back here."""
    low, high = estimate.interval(level)
    if minimized:
        return Measure(mean=-estimate.mean, low=-high, high=-low, items=estimate.items)
    return Measure(mean=estimate.mean, low=low, high=high, items=estimate.items)
