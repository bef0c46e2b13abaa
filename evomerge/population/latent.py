"""The unbounded space that Gaussian searches live in, and the weighted mean that they minimize.

A sine folds it into the unit box, so nothing is ever clipped or resampled at the borders. Unlike a sigmoid, the sine
has no plateau where a drifting mean would get lost, and an optimum on the border is an ordinary point.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evomerge.spaces import Genome

__all__ = ["Floats", "to_genome", "to_latent", "weighted_mean"]

Floats = NDArray[np.float64]

_EDGE = 0.02
"""How close to the border a start may lie: the sine is flat there, so first steps would have little effect."""


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
