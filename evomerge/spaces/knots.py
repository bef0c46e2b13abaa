"""Profiles over depth from a few values at equal steps, and back.

Knows nothing of operators, genes or models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "block_diagonal", "fit_knots", "hats", "lift", "over_depth"]

Floats = NDArray[np.float64]


def over_depth(knots: Sequence[float], layers: int) -> list[float]:
    """Linear interpolation of equally spaced knots: the first at layer 0, the last at the last layer.

    Returns:
        One value per layer.
    """
    depth = [layer * (len(knots) - 1) / max(layers - 1, 1) for layer in range(layers)]
    return [float(value) for value in np.interp(depth, range(len(knots)), knots)]


def hats(knots: int, layers: int) -> Floats:
    """`(layers, knots)`: times the knots, this is their profile."""
    return np.array([over_depth(hat, layers) for hat in np.eye(knots).tolist()]).T


def fit_knots(profile: Sequence[float], knots: int) -> list[float]:
    """The knots whose interpolation is closest to a profile: least squares over its layers.

    With one knot that is the mean; with one knot per layer, the profile itself.

    Args:
        profile: one value per layer.
        knots: how many; at most as many as there are layers.
    """
    solution, *_ = np.linalg.lstsq(hats(knots, len(profile)), np.asarray(profile), rcond=None)
    return [float(value) for value in solution]


def lift(coarse: int, fine: int, layers: int) -> Floats:
    """`(fine, coarse)`: from knots to more knots with the same profile, or the closest by least squares.

    The profile is the same where all bends of the coarse one lie at fine knots: from one or two knots to any number, to
    one knot per layer, and where `coarse - 1` divides `fine - 1`.
    """
    solution, *_ = np.linalg.lstsq(hats(fine, layers), hats(coarse, layers), rcond=None)
    return np.asarray(solution)


def block_diagonal(blocks: Sequence[Floats]) -> Floats:
    """A matrix of blocks along its diagonal."""
    matrix = np.zeros(np.sum([block.shape for block in blocks], axis=0))
    row = column = 0
    for block in blocks:
        matrix[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return matrix
