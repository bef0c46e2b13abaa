"""From per-item outcomes to scores with standard errors.

The direction of an objective is applied here and nowhere else: a score is higher-is-better. Knows nothing of candidates
or fronts.

Legend: n items of a task, q objectives read from it, `values[i, j]` score of item i in objective j, `w` weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import TaskError

if TYPE_CHECKING:
    from evomerge.config import Measured
    from evomerge.outcome import Responses

__all__ = [
    "Estimate",
    "Floats",
    "Table",
    "is_binary",
    "mean_estimate",
    "quantile",
    "raise_diagonal",
    "scores",
    "tables",
    "weights",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A score as its items tell it.

    Attributes:
        mean: mean over items; higher is better.
        se: standard error of the mean.
        items: number of items.
        centre: middle of the interval; for right-or-wrong metrics a little nearer to one half than the mean.
        bounds: lowest and highest mean there can be; intervals end there.
    """

    mean: float
    se: float
    items: int
    centre: float
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def interval(self, level: float) -> tuple[float, float]:
        """Student interval for the mean over all items of the kind; always holds `mean`.

        Args:
            level: confidence, for example 0.95.
        """
        half = quantile(level, self.items - 1) * self.se
        low, high = self.bounds
        return max(low, min(self.mean, self.centre - half)), min(high, max(self.mean, self.centre + half))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """What the objectives say about the items of one task.

    Attributes:
        items: item ids `[n]`, sorted.
        values: scores `[n, q]`, higher is better.
        columns: for each column, its objective's place in the list it came from `[q]`.
        signs: for each column, 1 or, where the objective is minimized, -1 `[q]`.
    """

    task: str
    items: NDArray[np.int64]
    values: Floats
    columns: tuple[int, ...]
    signs: Floats

    def only(self, items: NDArray[np.int64]) -> Table:
        """The rows of some of its items, given sorted."""
        rows = np.searchsorted(self.items, items)
        return replace(self, items=items, values=self.values[rows])


def quantile(level: float, freedom: int) -> float:
    """Half-width of a two-sided interval in standard errors (Student, `freedom` degrees of freedom)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1.0 + level) / 2.0))


def weights(objectives: Sequence[Measured]) -> Floats:
    """The objectives' weights, scaled to a sum of 1."""
    raw = np.array([objective.weight for objective in objectives], dtype=np.float64)
    return np.asarray(raw / raw.sum())


def tables(responses: Sequence[Responses], objectives: Sequence[Measured]) -> Iterator[Table]:
    """The responses as one table per task, in the order in which objectives name the tasks.

    Raises:
        TaskError: an objective without responses, fewer than 2 items, or metrics of one task on different items.
    """
    by_metric = {(response.task, response.metric): response for response in responses}
    for task in dict.fromkeys(objective.task for objective in objectives):
        columns = tuple(j for j, objective in enumerate(objectives) if objective.task == task)
        found = [_response(by_metric, objectives[j]) for j in columns]
        if any(response.items != found[0].items for response in found):
            raise TaskError(f"task {task!r}: expected all its metrics on the same items; got different ones")
        signs = np.array([1.0 if objectives[j].goal == "max" else -1.0 for j in columns])
        values = np.array([response.values for response in found], dtype=np.float64).T * signs
        items = np.array(found[0].items, dtype=np.int64)
        yield Table(task=task, items=items, values=values, columns=columns, signs=signs)


def _response(by_metric: dict[tuple[str, str], Responses], objective: Measured) -> Responses:
    response = by_metric.get((objective.task, objective.metric))
    if response is None:
        raise TaskError(
            f"objective {objective.name!r}: expected responses to task {objective.task!r}, metric "
            f"{objective.metric!r}; got {sorted(by_metric)}"
        )
    if len(response.items) < 2:
        raise TaskError(f"objective {objective.name!r}: expected at least 2 items; got {len(response.items)}")
    return response


def scores(responses: Sequence[Responses], objectives: Sequence[Measured]) -> tuple[Estimate, ...]:
    """One estimate per objective, in their order; higher is better whatever the goal.

    For a right-or-wrong metric, standard error and interval come from the sample plus two right and two wrong items
    (Agresti and Coull, 1998), so that a small sample that is all right still has an error above 0.

    Raises:
        TaskError: an objective without responses, or on fewer than 2 items.
    """
    found: dict[int, Estimate] = {}
    for table in tables(responses, objectives):
        centres, covariance = _moments(table)
        bounds = _bounds(table)
        for column, j in enumerate(table.columns):
            found[j] = Estimate(
                mean=float(table.values[:, column].mean()),
                se=math.sqrt(covariance[column, column]),
                items=len(table.items),
                centre=float(centres[column]),
                bounds=bounds[column],
            )
    return tuple(found[j] for j in range(len(objectives)))


def mean_estimate(responses: Sequence[Responses], objectives: Sequence[Measured]) -> Estimate:
    """Weighted mean over the objectives; higher is better.

    Items of different tasks are independent; objectives that share a task are correlated item by item, and their
    covariance counts.

    Raises:
        TaskError: an objective without responses, or on fewer than 2 items.
    """
    share = weights(objectives)
    mean = centre = variance = low = high = 0.0
    items = 0
    for table in tables(responses, objectives):
        w = share[list(table.columns)]
        centres, covariance = _moments(table)
        lows, highs = zip(*_bounds(table), strict=True)
        low, high = low + float(w @ np.array(lows)), high + float(w @ np.array(highs))
        mean += float(w @ table.values.mean(axis=0))
        centre += float(w @ centres)
        variance += float(w @ covariance @ w)
        items += len(table.items)
    return Estimate(mean=mean, se=math.sqrt(variance), items=items, centre=centre, bounds=(low, high))


def _moments(table: Table) -> tuple[Floats, Floats]:
    """Centre `[q]` and covariance `[q, q]` of the column means, with pseudo-items for right-or-wrong columns."""
    values, count, binary = table.values, len(table.items), is_binary(table.values)
    share = (np.abs(values).sum(axis=0) + 2.0) / (count + 4.0)
    floor = np.where(binary, share * (1.0 - share) / (count + 4.0), 0.0)
    centre = np.where(binary, table.signs * share, values.mean(axis=0))
    return centre, raise_diagonal(np.atleast_2d(np.cov(values, rowvar=False)) / count, floor)


def _bounds(table: Table) -> list[tuple[float, float]]:
    """For each column, what its mean can be at all: [0, 1], or [-1, 0] if minimized, for right-or-wrong metrics."""
    unbounded = (-math.inf, math.inf)
    ranges = [(0.0, 1.0) if sign > 0 else (-1.0, 0.0) for sign in table.signs]
    return [r if binary else unbounded for r, binary in zip(ranges, is_binary(table.values), strict=True)]


def is_binary(values: Floats) -> NDArray[np.bool_]:
    """Whether each column holds nothing but 0 and 1, signs aside."""
    return np.asarray(np.isin(np.abs(values), (0.0, 1.0)).all(axis=0))


def raise_diagonal(matrix: Floats, floor: Floats) -> Floats:
    """The matrix with its diagonal raised to a floor; never lowered, so it stays positive semidefinite."""
    return np.asarray(matrix + np.diag(np.maximum(floor - matrix.diagonal(), 0.0)))
