"""Scales of paths that depend on which layer follows which, as in Akiba et al. 2024.

Layers are numbered over all models. Knows nothing of paths as recipes hold them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, final

import numpy as np

from evomerge.spaces.base import Gene

__all__ = ["ScaleMatrix", "ScaleNetwork", "Scales"]

_WEIGHTS = 1.0
"""Weights of a network lie between this and its negative."""


class Scales(Protocol):
    """What scales are computed from."""

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The coordinates, in order; at their starts nothing is scaled."""

    def after(self, layers: Sequence[int], places: Sequence[float], values: Sequence[float]) -> list[float]:
        """What the residual stream is multiplied with before each layer of a path but the first.

        Args:
            layers: the path.
            places: where in the row each stands, from 0 to 1.
            values: one for each gene, from 0 to 1.
        """


@final
class ScaleMatrix:
    """W: a scale for each pair of layers; only the few that a path crosses have an effect.

    Args:
        names: of all layers.
        logarithms: of lowest and highest scale.
    """

    def __init__(self, names: Sequence[str], logarithms: tuple[float, float]) -> None:
        low, high = logarithms
        start = -low / (high - low)
        self.genes = tuple(
            Gene(name=f"log_scale.{before}.{after}", low=low, high=high, start=start)
            for before in names
            for after in names
        )
        self._layers = len(names)

    def after(self, layers: Sequence[int], places: Sequence[float], values: Sequence[float]) -> list[float]:
        """See `Scales.after`."""
        pairs = [before * self._layers + after for before, after in pairwise(layers)]
        return [math.exp(self.genes[pair].natural(values[pair])) for pair in pairs]


@final
class ScaleNetwork:
    """pi(i, j, t): one layer of tanh units on the layer before, the layer after and the place, all from -1 to 1.

    The logarithm of a scale is the tanh of their weighted sum, times that of the highest or lowest scale.

    Args:
        layers: number of all layers.
        logarithms: of lowest and highest scale.
        hidden: number of units.
    """

    def __init__(self, layers: int, logarithms: tuple[float, float], hidden: int) -> None:
        unit = ("before", "after", "place", "bias", "out")
        names = [*(f"network.{part}.{index}" for part in unit for index in range(hidden)), "network.bias"]
        self.genes = tuple(Gene(name=name, low=-_WEIGHTS, high=_WEIGHTS, start=0.5) for name in names)
        self._layers = layers
        self._logarithms = logarithms
        self._hidden = hidden

    def after(self, layers: Sequence[int], places: Sequence[float], values: Sequence[float]) -> list[float]:
        """See `Scales.after`."""
        natural = np.array([gene.natural(value) for gene, value in zip(self.genes, values, strict=True)])
        weights = natural[:-1].reshape(5, self._hidden)
        seen = 2.0 * np.array(layers) / max(self._layers - 1, 1) - 1.0
        inputs = np.stack([seen[:-1], seen[1:], 2.0 * np.array(places[1:]) - 1.0, np.ones(len(seen) - 1)], axis=1)
        bent = np.tanh(np.tanh(inputs @ weights[:4]) @ weights[4] + natural[-1])
        low, high = self._logarithms
        return [math.exp(high * value if value > 0.0 else -low * value) for value in bent.tolist()]
