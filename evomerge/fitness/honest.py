"""What may be claimed at the end: finalists against anchors, item by item, on items that the search never saw.

Many comparisons are made and the best is shown, so every interval is widened to hold together with all others
(Bonferroni). Knows nothing of recipes or of how candidates were found.

Legend: as in `estimate`; d = difference of two candidates' scores on one item.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import moocore
import numpy as np

from evomerge.errors import TaskError
from evomerge.fitness.estimate import (
    Floats,
    Table,
    costs,
    is_binary,
    quantile,
    raise_diagonal,
    satterthwaite,
    scores,
    tables,
    weights,
)
from evomerge.pareto import best, knee, nondominated
from evomerge.rng import stream

if TYPE_CHECKING:
    from evomerge.config import Measured
    from evomerge.outcome import Answer

__all__ = ["MEAN", "ConfirmedFront", "Difference", "confirm_front", "membership_probability", "paired_difference"]

MEAN = "mean"
"""Stands beside the objectives' names for their weighted mean."""

RESAMPLES = 1000
"""Item sets that are drawn to tell how sure a place on the front is: to 0.03."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much better one candidate is than another; above 0 is better, whatever the goal.

    Attributes:
        mean: mean difference over the items.
        low, high: its interval.
        items: number of items that both answered.
    """

    mean: float
    low: float
    high: float
    items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmedFront:
    """What the confirmation found.

    Attributes:
        members: candidates, anchors among them, that no other eligible one dominates; sorted.
        probability: for every confirmed candidate, how probably it would be a member on other items of the kind.
        knee: the balanced member (see `evomerge.pareto.knee`).
        best: for each objective, the member with the best score; of equals, the knee among them.
        gains: candidate -> anchor label -> objective name or `MEAN` -> difference; for every candidate but the anchors.
    """

    members: tuple[int, ...]
    probability: Mapping[int, float]
    knee: int
    best: Mapping[str, int]
    gains: Mapping[int, Mapping[str, Mapping[str, Difference]]]

    def beaten(self, candidate: int) -> tuple[str, ...]:
        """Labels of the anchors that a candidate beats in the mean of the objectives, interval above 0.

        An anchor has no gains, so it beats nobody.
        """
        return tuple(label for label, gain in self.gains.get(candidate, {}).items() if gain[MEAN].low > 0)


def paired_difference(
    a: Sequence[Answer],
    b: Sequence[Answer],
    objectives: Sequence[Measured],
    level: float,
    comparisons: int = 1,
) -> Difference:
    """How much better a is than b in the weighted mean of some objectives, from the items that both answered.

    A Student interval of the per-item differences; that of a cost is exact. For right-or-wrong metrics it is computed
    as if two more items had been seen, half an item for each way in which a and b can be right or wrong (Agresti and
    Min, 2005): without them, small samples claim too much.

    Args:
        a: responses of one candidate.
        b: responses of the other.
        objectives: one or more; their weights count.
        level: confidence, for example 0.95.
        comparisons: how many intervals must hold together.

    Raises:
        TaskError: an objective without responses, or a task with fewer than 2 common items.
    """
    share = weights(objectives)
    mean = centre = float((costs(a, objectives) - costs(b, objectives)) @ share)
    variances, counts = [], []
    for task, left, right in _paired(tables(a, objectives), tables(b, objectives)):
        w, d = left.shares @ share, left.values - right.values
        if len(d) < 2:
            raise TaskError(f"task {task!r}: expected at least 2 items that both candidates answered; got {len(d)}")
        middle, covariance = _moments(d)
        mean += float(w @ d.mean(axis=0))
        centre += float(w @ middle)
        variances.append(float(w @ covariance @ w))
        counts.append(len(d))
    freedom = satterthwaite(variances, [count - 1 for count in counts])
    half = quantile(1.0 - (1.0 - level) / comparisons, freedom) * math.sqrt(sum(variances)) if any(variances) else 0.0
    return Difference(mean=mean, low=min(mean, centre - half), high=max(mean, centre + half), items=sum(counts))


def _paired(left: Iterator[Table], right: Iterator[Table]) -> Iterator[tuple[str, Table, Table]]:
    """Both candidates' tables, task by task, on their common items."""
    for a, b in zip(left, right, strict=True):
        common = np.intersect1d(a.items, b.items, assume_unique=True)
        yield a.task, a.only(common), b.only(common)


def _moments(d: Floats) -> tuple[Floats, Floats]:
    """Centre `[q]` and covariance `[q, q]` of the mean differences, with pseudo-items for right-or-wrong columns."""
    count = len(d)
    plain = np.atleast_2d(np.cov(d, rowvar=False)) / count
    binary = is_binary(d)
    middle = np.where(binary, d.sum(axis=0) / (count + 2.0), d.mean(axis=0))
    guarded = np.where(binary, ((np.square(d).sum(axis=0) + 1.0) / (count + 2.0) - middle**2) / (count + 2.0), 0.0)
    return middle, raise_diagonal(plain, guarded)


def confirm_front(
    finalists: Mapping[int, Sequence[Answer]],
    anchors: Mapping[str, int],
    objectives: Sequence[Measured],
    level: float,
    excluded: Container[int] = (),
) -> ConfirmedFront:
    """The front by confirmed scores, and every finalist's gains over every anchor.

    All intervals hold together at `level`: over every pair of a finalist and an anchor, for the mean and for each
    objective. So neither the choice of a best finalist nor that of an objective to praise it for voids them.

    Args:
        finalists: confirmation responses by candidate id, anchors included.
        anchors: candidate id by label.
        objectives: all objectives of the run.
        level: confidence, for example 0.95.
        excluded: candidates that break a constraint: no place on the front for them, unless all do.

    Raises:
        TaskError: responses that do not fit the objectives.
    """
    ids = [i for i in sorted(finalists) if i not in excluded] or sorted(finalists)
    means = np.array([[estimate.mean for estimate in scores(finalists[i], objectives)] for i in ids])
    front = nondominated(-means)
    new = [i for i in sorted(finalists) if i not in set(anchors.values())]
    uncertain = sum(objective.cost is None for objective in objectives)
    kinds = 1 + uncertain if len(objectives) > 1 else 1
    comparisons = max(len(new) * len(anchors) * kinds, 1)
    return ConfirmedFront(
        members=tuple(ids[row] for row in front),
        probability=membership_probability({i: finalists[i] for i in ids}, objectives),
        knee=ids[front[knee(-means[front])]],
        best={o.name: ids[best(-means, j)] for j, o in enumerate(objectives)},
        gains={
            i: {
                label: _gain(finalists[i], finalists[anchor], objectives, level, comparisons)
                for label, anchor in anchors.items()
            }
            for i in new
        },
    )


def membership_probability(
    finalists: Mapping[int, Sequence[Answer]], objectives: Sequence[Measured], draws: int = RESAMPLES
) -> dict[int, float]:
    """How probably each candidate is on the front: the share of resampled item sets on which none dominates it.

    A bootstrap over items (Efron 1979). All candidates are resampled together, item by item, so what they get right or
    wrong in common cancels. Items tell nothing of mistakes that no item shows: with few of them a probability of 1 is
    not certainty.

    Args:
        finalists: responses by candidate id, to the same items.
        objectives: all objectives of the run.
        draws: how many item sets are drawn.

    Raises:
        TaskError: responses that do not fit the objectives, or to other items than another candidate's.
    """
    ids = sorted(finalists)
    each = {i: list(tables(finalists[i], objectives)) for i in ids}
    means = np.repeat([[costs(finalists[i], objectives) for i in ids]], draws, axis=0)
    for place, table in enumerate(each[ids[0]]):
        rows = [each[i][place] for i in ids]
        if any(row.items.tolist() != table.items.tolist() for row in rows):
            raise TaskError(f"task {table.task!r}: expected all candidates on the same items; got different ones")
        count = len(table.items)
        shares = stream(0, "bootstrap", table.task).multinomial(count, np.full(count, 1.0 / count), draws) / count
        for column, row in enumerate(rows):
            means[:, column] += shares @ row.values @ row.shares
    member = [moocore.is_nondominated(-sample, keep_weakly=True) for sample in means]
    return dict(zip(ids, np.mean(member, axis=0).tolist(), strict=True))


def _gain(
    a: Sequence[Answer],
    b: Sequence[Answer],
    objectives: Sequence[Measured],
    level: float,
    comparisons: int,
) -> dict[str, Difference]:
    whole = paired_difference(a, b, objectives, level, comparisons)
    each = {o.name: paired_difference(a, b, [o], level, comparisons) for o in objectives}
    return {MEAN: whole, **each}
