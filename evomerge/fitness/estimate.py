"""From per-item outcomes to scores with standard errors.

The direction of an objective is applied here and nowhere else: a score is higher-is-better. Knows nothing of candidates
or fronts.

Legend: n items of a task, p metrics read from it, `values[i, k]` score of item i by metric k, q objectives, each a
weighted mean of metrics, or a cost; `w` weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import TaskError
from evomerge.outcome import Exact, Responses

if TYPE_CHECKING:
    from evomerge.config import Measured, Metric
    from evomerge.outcome import Answer
    from evomerge.recipe import Recipe, Sizes

__all__ = [
    "Estimate",
    "Floats",
    "Table",
    "costs",
    "is_binary",
    "quantile",
    "raise_diagonal",
    "satterthwaite",
    "scores",
    "scores_and_mean",
    "tables",
    "weights",
    "with_costs",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A score as its items tell it.

    Attributes:
        mean: mean over items; higher is better.
        se: standard error of the mean; 0 for a cost.
        items: number of items; 0 for a cost.
        freedom: degrees of freedom of the standard error.
        centre: middle of the interval; for right-or-wrong metrics a little nearer to one half than the mean.
        bounds: lowest and highest mean there can be; intervals end there.
    """

    mean: float
    se: float
    items: int
    freedom: float
    centre: float
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def interval(self, level: float) -> tuple[float, float]:
        """Student interval for the mean over all items of the kind; always holds `mean`.

        Args:
            level: confidence, for example 0.95.
        """
        half = quantile(level, self.freedom) * self.se if self.se else 0.0
        low, high = self.bounds
        return max(low, min(self.mean, self.centre - half)), min(high, max(self.mean, self.centre + half))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """What the metrics of one task say about its items.

    Attributes:
        items: item ids `[n]`, sorted.
        values: scores `[n, p]`, higher is better.
        shares: how much each metric counts in each objective `[p, q]`.
        signs: for each metric, 1 or, where it is minimized, -1 `[p]`.
    """

    task: str
    items: NDArray[np.int64]
    values: Floats
    shares: Floats
    signs: Floats

    def only(self, items: NDArray[np.int64]) -> Table:
        """The rows of some of its items, given sorted."""
        rows = np.searchsorted(self.items, items)
        return replace(self, items=items, values=self.values[rows])


def quantile(level: float, freedom: float) -> float:
    """Half-width of a two-sided interval in standard errors (Student, `freedom` degrees of freedom)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1.0 + level) / 2.0))


def weights(objectives: Sequence[Measured]) -> Floats:
    """The objectives' weights, scaled to a sum of 1; equal ones for costs that are looked at alone."""
    raw = np.array([objective.weight for objective in objectives], dtype=np.float64)
    raw = raw if raw.any() else np.ones_like(raw)
    return np.asarray(raw / raw.sum())


def costs(answers: Sequence[Answer], objectives: Sequence[Measured]) -> Floats:
    """Each objective's cost, higher is better; 0 for what items measure `[q]`.

    Raises:
        TaskError: a cost that is not known.
    """
    known = {answer.cost: float(answer.value) for answer in answers if isinstance(answer, Exact)}
    for objective in objectives:
        if objective.cost is not None and objective.cost not in known:
            raise TaskError(f"{objective.name!r}: expected the cost {objective.cost!r}; got {sorted(known)}")
    signs = [1.0 if objective.goal == "max" else -1.0 for objective in objectives]
    return np.array([s * known[o.cost] if o.cost else 0.0 for s, o in zip(signs, objectives, strict=True)])


def with_costs(
    responses: Sequence[Responses], recipe: Recipe, sizes: Sizes | None, measured: Sequence[Measured]
) -> tuple[Answer, ...]:
    """What a candidate answered, and those of its costs that somebody asks for.

    Args:
        responses: to items.
        recipe: of the candidate.
        sizes: of the pool's models; None where nobody recorded them.
        measured: objectives and constraints.

    Raises:
        TaskError: a cost is asked for, and the sizes are not known.
    """
    wanted = [each.cost for each in measured if each.cost is not None]
    if wanted and sizes is None:
        raise TaskError(f"expected a run that recorded the sizes of its models, to tell {wanted[0]!r}; start a new run")
    exact = (Exact(cost=cost, value=sizes.of(recipe, cost)) for cost in dict.fromkeys(wanted) if sizes is not None)
    return (*responses, *exact)


def tables(answers: Sequence[Answer], objectives: Sequence[Measured]) -> Iterator[Table]:
    """The responses as one table per task, in the order in which objectives name the tasks.

    Raises:
        TaskError: an objective without responses, fewer than 2 items, or metrics of one task on different items.
    """
    by_metric = {(answer.task, answer.metric): answer for answer in answers if isinstance(answer, Responses)}
    read = [(metric, j) for j, objective in enumerate(objectives) for metric in objective.metrics]
    for task in dict.fromkeys(metric.task for metric, _ in read):
        metrics = [(metric, j) for metric, j in read if metric.task == task]
        found = [_response(by_metric, metric) for metric, _ in metrics]
        if any(response.items != found[0].items for response in found):
            raise TaskError(f"task {task!r}: expected all its metrics on the same items; got different ones")
        signs = np.array([1.0 if metric.goal == "max" else -1.0 for metric, _ in metrics])
        shares = np.zeros((len(metrics), len(objectives)))
        shares[range(len(metrics)), [j for _, j in metrics]] = [metric.share for metric, _ in metrics]
        values = np.array([response.values for response in found], dtype=np.float64).T * signs
        items = np.array(found[0].items, dtype=np.int64)
        yield Table(task=task, items=items, values=values, shares=shares, signs=signs)


def _response(by_metric: dict[tuple[str, str], Responses], metric: Metric) -> Responses:
    response = by_metric.get((metric.task, metric.metric))
    if response is None:
        raise TaskError(
            f"objective {metric.name!r}: expected responses to task {metric.task!r}, metric "
            f"{metric.metric!r}; got {sorted(by_metric)}"
        )
    if len(response.items) < 2:
        raise TaskError(f"objective {metric.name!r}: expected at least 2 items; got {len(response.items)}")
    return response


def scores(answers: Sequence[Answer], objectives: Sequence[Measured]) -> tuple[Estimate, ...]:
    """One estimate per objective, in their order; higher is better whatever the goal.

    For a right-or-wrong metric, standard error and interval come from the sample plus two right and two wrong items
    (Agresti and Coull, 1998), so that a small sample that is all right still has an error above 0.

    Raises:
        TaskError: an objective without responses, or on fewer than 2 items.
    """
    return _sums(answers, objectives, np.eye(len(objectives)))


def scores_and_mean(answers: Sequence[Answer], objectives: Sequence[Measured]) -> tuple[tuple[Estimate, ...], Estimate]:
    """The `scores`, and their weighted mean with its own error.

    Raises:
        TaskError: an objective without responses, or on fewer than 2 items.
    """
    *each, mean = _sums(answers, objectives, np.vstack([np.eye(len(objectives)), weights(objectives)]))
    return tuple(each), mean


def _sums(answers: Sequence[Answer], objectives: Sequence[Measured], shares: Floats) -> tuple[Estimate, ...]:
    """One estimate for each weighted sum of the objectives, `shares` `[s, q]`."""
    read, exact = [_moments(table) for table in tables(answers, objectives)], costs(answers, objectives)
    return tuple(_sum(read, share, float(exact @ share)) for share in shares)


def _sum(read: Sequence[_Moments], share: Floats, exact: float) -> Estimate:
    """A weighted sum of objectives, `share` `[q]`, of which `exact` is known from costs.

    Items of different tasks are independent; metrics of one task are correlated item by item, and their covariance
    counts. Degrees of freedom are those of Welch (1947) and Satterthwaite (1946).
    """
    mean = centre = low = high = exact
    items, variances, freedoms = 0, [], []
    for found in read:
        w = found.table.shares @ share
        if not w.any():
            continue
        lows, highs = _bounds(found, w)
        low, high = low + lows, high + highs
        mean += float(w @ found.means)
        centre += float(w @ found.centres)
        variances.append(float(w @ found.covariance @ w))
        freedoms.append(len(found.table.items) - 1)
        items += len(found.table.items)
    return Estimate(
        mean=mean,
        se=math.sqrt(sum(variances)),
        items=items,
        freedom=satterthwaite(variances, freedoms),
        centre=centre,
        bounds=(low, high),
    )


def satterthwaite(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """Degrees of freedom of a sum of independent means; infinite for one without variance."""
    spread = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
    return sum(variances) ** 2 / spread if spread else math.inf


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Moments:
    """Of a table's columns: means `[p]`, intervals' centres `[p]`, covariance of means `[p, p]`, are they 0 or 1 `[p]`.

    Centres and variances of right-or-wrong columns have pseudo-items.
    """

    table: Table
    means: Floats
    centres: Floats
    covariance: Floats
    binary: NDArray[np.bool_]


def _moments(table: Table) -> _Moments:
    values, count, binary = table.values, len(table.items), is_binary(table.values)
    means = values.mean(axis=0)
    share = (np.abs(values).sum(axis=0) + 2.0) / (count + 4.0)
    floor = np.where(binary, share * (1.0 - share) / (count + 4.0), 0.0)
    from_mean = values - means
    return _Moments(
        table=table,
        means=means,
        centres=np.where(binary, table.signs * share, means),
        covariance=raise_diagonal(from_mean.T @ from_mean / (count - 1) / count, floor),
        binary=binary,
    )


def _bounds(found: _Moments, w: Floats) -> tuple[float, float]:
    """What a weighted sum of the columns' means can be: 0 to 1 in each right-or-wrong column, -1 to 0 if minimized."""
    low = high = 0.0
    for weight, sign, binary in zip(w.tolist(), found.table.signs.tolist(), found.binary.tolist(), strict=True):
        if weight and not binary:
            return -math.inf, math.inf
        low, high = low + min(weight * sign, 0.0), high + max(weight * sign, 0.0)
    return low, high


def is_binary(values: Floats) -> NDArray[np.bool_]:
    """Whether each column holds nothing but 0 and 1, signs aside."""
    return np.asarray(((values == 0.0) | (np.abs(values) == 1.0)).all(axis=0))


def raise_diagonal(matrix: Floats, floor: Floats) -> Floats:
    """The matrix with its diagonal raised to a floor; never lowered, so it stays positive semidefinite."""
    return np.asarray(matrix + np.diag(np.maximum(floor - matrix.diagonal(), 0.0)))
