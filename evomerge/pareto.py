"""Pareto arithmetic on cost matrices: pure functions of arrays.

Costs are `(n, m)`: n candidates, m objectives, lower is better. Knows nothing of genomes, recipes or how a cost was
made; what it calls a front is a front of the numbers it is given, estimates included.
"""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["best", "crowding_distance", "hypervolume", "knee", "nondominated", "shortlist"]

Floats = NDArray[np.float64]


def _matrix(costs: ArrayLike) -> Floats:
    matrix = np.asarray(costs, dtype=np.float64)
    if matrix.size == 0:
        return matrix.reshape(0, matrix.shape[1] if matrix.ndim == 2 else 0)
    if matrix.ndim != 2:
        raise ValueError(f"costs must have shape (candidates, objectives); got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"costs must be finite; row {int(np.argmin(np.isfinite(matrix).all(axis=1)))} is not")
    return matrix


def nondominated(costs: ArrayLike) -> list[int]:
    """Indices of the rows that no other row dominates, in input order; equal rows are all kept.

    Example:
        >>> nondominated([[0, 1], [1, 0], [1, 1], [1, 0]])
        [0, 1, 3]

    Args:
        costs: `(n, m)`, lower is better; n may be 0.

    Raises:
        ValueError: `costs` is not a matrix of finite numbers.
    """
    matrix = _matrix(costs)
    if not len(matrix):
        return []
    return [int(i) for i in np.flatnonzero(moocore.is_nondominated(matrix, keep_weakly=True))]


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """Volume that the rows dominate, up to a reference point; 0 for no rows.

    Zitzler and Thiele 1998. Rows that are not better than the reference in every objective add nothing.

    Args:
        costs: `(n, m)`, lower is better; n may be 0.
        reference: `(m,)`, one cost per objective.

    Raises:
        ValueError: numbers that are not finite, or another number of objectives in the reference.
    """
    matrix, corner = _matrix(costs), _matrix(np.atleast_2d(reference))[0]
    if not len(matrix):
        return 0.0
    if matrix.shape[1] != len(corner):
        raise ValueError(f"the reference needs {matrix.shape[1]} costs, one per objective; got {len(corner)}")
    inside = matrix[(matrix < corner).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=corner)) if len(inside) else 0.0


def knee(costs: ArrayLike) -> int:
    """Index of the front's knee: the row closest to the ideal point.

    Each objective is scaled so that the front's best cost is 0 (ideal) and its worst is 1 (nadir); the distance is
    Euclidean. An objective in which the whole front is equal does not count. Dominated rows are never chosen. Of rows
    that are equally close, as those of a front of two always are: the one with the least sum of costs, then the first.

    Example:
        >>> knee([[0, 10], [2, 2], [10, 0]])
        1

    Args:
        costs: `(n, m)`, lower is better, n >= 1.

    Raises:
        ValueError: no rows, or numbers that are not finite.
    """
    matrix = _matrix(costs)
    if not len(matrix):
        raise ValueError("a knee needs at least one candidate; got none")
    front = nondominated(matrix)
    low, span = _scale(matrix[front])
    distances = (((matrix[front] - low) / span) ** 2).sum(axis=1)
    closest = np.flatnonzero(distances <= distances.min() + 1e-12)
    return front[int(closest[np.argmin(matrix[front][closest].sum(axis=1))])]


def best(costs: ArrayLike, objective: int) -> int:
    """Index of the front's row with the least cost in one objective; of several, the knee among them.

    Example:
        >>> best([[0, 9], [0, 2], [1, 0]], 0)
        1

    Args:
        costs: `(n, m)`, lower is better, n >= 1.
        objective: its column.

    Raises:
        ValueError: no rows, or numbers that are not finite.
    """
    matrix = _matrix(costs)
    if not len(matrix):
        raise ValueError("the best needs at least one candidate; got none")
    front = np.array(nondominated(matrix))
    column = matrix[front, objective]
    equal = front[column <= column.min() + 1e-12]
    return int(equal[knee(matrix[equal])])


def crowding_distance(costs: ArrayLike) -> Floats:
    """How far each row is from its neighbours on the front; infinite at the ends of each objective.

    Deb et al. 2002 (NSGA-II), section III-B, with each objective scaled by its range. Objectives in which all rows
    are equal do not count.

    Args:
        costs: `(n, m)` rows of one front.

    Returns:
        `(n,)`, higher is lonelier.

    Raises:
        ValueError: `costs` is not a matrix of finite numbers.
    """
    matrix = _matrix(costs)
    distance = np.zeros(len(matrix))
    for column in matrix.T if len(matrix) else ():
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
            distance[order[[0, -1]]] = np.inf
    return distance


def shortlist(costs: ArrayLike) -> list[int]:
    """Indices of the front in the order in which they deserve a confirmation.

    The knee first, then by decreasing crowding distance: whoever keeps only the first few keeps the knee, the ends and
    a spread between them.

    Args:
        costs: `(n, m)`, lower is better; n may be 0.

    Raises:
        ValueError: `costs` is not a matrix of finite numbers.
    """
    matrix = _matrix(costs)
    front = nondominated(matrix)
    if not front:
        return []
    first, lonely = knee(matrix), dict(zip(front, crowding_distance(matrix[front]), strict=True))
    return sorted(front, key=lambda i: (i != first, -lonely[i], i))


def _scale(front: Floats) -> tuple[Floats, Floats]:
    """Ideal point of a front, and its range per objective with 1 in place of 0."""
    low, span = front.min(axis=0), np.ptp(front, axis=0)
    return low, np.where(span > 0, span, 1.0)
