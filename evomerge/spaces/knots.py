"""Profiles over depth from a few values at equal steps, and back.

Knows nothing of operators, genes or models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["fit_knots", "over_depth"]


def over_depth(knots: Sequence[float], layers: int) -> list[float]:
    """Linear interpolation of equally spaced knots: the first at layer 0, the last at the last layer.

    Returns:
        One value per layer.
    """
    depth = [layer * (len(knots) - 1) / max(layers - 1, 1) for layer in range(layers)]
    return [float(value) for value in np.interp(depth, range(len(knots)), knots)]


def fit_knots(profile: Sequence[float], knots: int) -> list[float]:
    """The knots whose interpolation is closest to a profile: least squares over its layers.

    With one knot that is the mean; with one knot per layer, the profile itself.

    Args:
        profile: one value per layer.
        knots: how many; at most as many as there are layers.
    """
    hats = np.array([over_depth(hat, len(profile)) for hat in np.eye(knots).tolist()])
    solution, *_ = np.linalg.lstsq(hats.T, np.asarray(profile), rcond=None)
    return [float(value) for value in solution]
