"""The unbounded space that Gaussian searches live in, and the weighted mean that they minimize.

A sine folds it into the unit box, so nothing is ever clipped or resampled at the borders. Unlike a sigmoid, the sine
has no plateau where a drifting mean would get lost, and an optimum on the border is an ordinary point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.spaces import Genome

__all__ = ["Distribution", "Floats", "lifted", "to_genome", "to_latent", "weighted_mean"]

Floats = NDArray[np.float64]

_EDGE = 0.02
"""How close to the border a start may lie: the sine is flat there, so first steps would have little effect."""


_STEEP = 0.2
"""Least slope that the fold is taken to have where a spread is lifted: at the border of the box it is flat."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Distribution:
    """A Gaussian in latent space.

    Attributes:
        mean: `(d,)`.
        sigma: step size.
        covariance: `(d, d)`, of determinant 1; None for the unit matrix.
    """

    mean: Floats
    sigma: float
    covariance: Floats | None = None


def weighted_mean(costs: tuple[float, ...], weights: tuple[float, ...]) -> float:
    """Mean of the costs, one weight for each."""
    return math.fsum(cost * weight for cost, weight in zip(costs, weights, strict=True)) / math.fsum(weights)


def to_latent(genome: Genome) -> Floats:
    """`(d,)`: a point that folds into the genome, drawn in from the border of the box by 0.02."""
    values: Floats = np.clip(np.array(genome.values), _EDGE, 1.0 - _EDGE)
    latent: Floats = np.arcsin(2.0 * values - 1.0) / 2.0
    return latent


def to_genome(latent: Floats) -> Genome:
    """The genome of a latent point; around 0.5 a latent step is a share of each gene's range."""
    return Genome(tuple(0.5 + 0.5 * np.sin(2.0 * latent)))


def lifted(spread: Distribution, lift: Floats, detail: float) -> Distribution:
    """A distribution over few genes as one over more, of which the few are the ones that vary.

    The mean is lifted exactly, in the unit box. The covariance is lifted to first order: the fold is a curve, whose
    slope at the mean turns latent spreads into spreads in the box, where the lift is linear, and back. It is exact
    where all genes that are interpolated share one slope, so from one knot always.

    Args:
        spread: over `d'` genes.
        lift: `(d, d')`.
        detail: standard deviation, in latent space, of what the few genes cannot express.
    """
    values = np.clip(lift @ np.array(to_genome(spread.mean).values), 0.0, 1.0)
    mean = np.arcsin(2.0 * values - 1.0) / 2.0
    before, after = (np.maximum(np.cos(2.0 * latent), _STEEP) for latent in (_folded(spread.mean), mean))
    turned = lift * before / after[:, None]
    covariance = np.eye(len(spread.mean)) if spread.covariance is None else spread.covariance
    full = spread.sigma**2 * turned @ covariance @ turned.T + detail**2 * np.eye(len(mean))
    sigma = math.exp(0.5 * np.linalg.slogdet(full)[1] / len(mean))
    return Distribution(mean=mean, sigma=sigma, covariance=full / sigma**2)


def _folded(latent: Floats) -> Floats:
    """The point of the first fold with the same genome."""
    folded: Floats = np.arcsin(np.sin(2.0 * latent)) / 2.0
    return folded
