"""Quadratic models of costs, with a posterior: what they say of a point, and how little they know of it.

Bayesian linear regression on a constant, the coordinates and their products: a Gaussian prior on coefficients, the
noise of each objective under an inverse-gamma one. Knows nothing of genomes, regions or who asks.

Legend: n points, d coordinates, m objectives, T = (d + 1)(d + 2) / 2 terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Quadratic", "least_known", "tamed", "unknowns"]

Floats = NDArray[np.float64]

_RIDGE = 1e-4
"""Precision of the prior, relative to the noise and per observation; keeps the fit unique before there are as many
points as unknowns."""

_DOUBT = 0.01
"""Sum of squares that the prior on the noise holds, in squared units of spread: no model is ever sure."""


def unknowns(coordinates: int) -> int:
    """T, the number of coefficients of a quadratic."""
    return (coordinates + 1) * (coordinates + 2) // 2


def tamed(costs: Floats) -> Floats:
    """Costs in units of their spread around the median; what is far out (a failure) is drawn in to 5 of them."""
    scale = np.maximum(np.abs(costs).max(axis=0), 1e-300)
    costs = costs / scale  # so that squares of huge costs do not overflow
    middle = np.median(costs, axis=0)
    spread = np.median(np.abs(costs - middle), axis=0)
    drawn: Floats = np.clip((costs - middle) / np.where(spread > 1e-12, spread, 1.0), -5.0, 5.0)
    return drawn


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quadratic:
    """One quadratic for each objective, fitted to the same points.

    Attributes:
        coefficients: `(T, m)`, posterior mean.
        precision: `(T, T)`, of the posterior, in units of the noise; it depends on the points alone.
        noise: `(m,)`, variance of an observation.
    """

    coefficients: Floats
    precision: Floats
    noise: Floats

    @classmethod
    def fitted(cls, points: Floats, costs: Floats) -> Self:
        """Ridge regression that leaves the constant free.

        Args:
            points: `(n, d)`, best between -1 and 1.
            costs: `(n, m)`, `tamed`.
        """
        terms = _terms(points)
        prior = _RIDGE * len(points) * np.eye(terms.shape[1])
        prior[0, 0] = 1e-12
        precision = terms.T @ terms + prior
        coefficients = np.linalg.solve(precision, terms.T @ costs)
        unexplained = np.maximum((costs * (costs - terms @ coefficients)).sum(axis=0), 0.0)
        return cls(
            coefficients=np.asarray(coefficients, dtype=np.float64),
            precision=precision,
            noise=(_DOUBT + unexplained) / (2.0 + len(points)),
        )

    def mean(self, points: Floats) -> Floats:
        """`(n, m)`: expected costs."""
        expected: Floats = _terms(points) @ self.coefficients
        return expected

    def drawn(self, points: Floats, draws: int, random: np.random.Generator) -> Floats:
        """`(draws, n, m)`: costs under models that are drawn from the posterior, without noise."""
        terms = _terms(points)
        whitened = np.linalg.solve(np.linalg.cholesky(self.precision), terms.T)  # (T, n); its squares sum to variances
        deviations = random.standard_normal((draws, len(self.noise), terms.shape[1])) @ whitened
        costs: Floats = terms @ self.coefficients + np.swapaxes(deviations * np.sqrt(self.noise)[:, None], 1, 2)
        return costs


def least_known(candidates: Floats, points: Floats, count: int) -> list[int]:
    """Which candidates to ask so that the models learn most: each has the largest posterior variance given the others.

    Greedy D-optimal design: the variance of a quadratic does not depend on the costs.

    Args:
        candidates: `(c, d)`, c of `count` or more.
        points: `(n, d)`, known already; n may be 0.
        count: how many to choose.
    """
    terms, known = _terms(candidates), _terms(points)
    prior = _RIDGE * (len(points) + count) * np.eye(terms.shape[1])
    inverse = np.linalg.inv(known.T @ known + prior)
    chosen: list[int] = []
    for _ in range(count):
        reach = terms @ inverse
        variances = (reach * terms).sum(axis=1)
        variances[chosen] = -np.inf
        chosen.append(int(np.argmax(variances)))
        best = reach[chosen[-1]]
        inverse -= np.outer(best, best) / (1.0 + variances[chosen[-1]])  # Sherman and Morrison 1950
    return chosen


def _terms(points: Floats) -> Floats:
    """`(n, T)`: one, the coordinates and their products."""
    first, second = np.triu_indices(points.shape[1])
    return np.hstack([np.ones((len(points), 1)), points, points[:, first] * points[:, second]])
