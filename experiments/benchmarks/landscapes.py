"""Synthetic merges with a known truth: accuracy as a function of coefficients over layers and module groups.

They rank optimizers; they do not predict what a model scores. What is optimal is smooth over the layers, up to a little
noise, which favours knots by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from evomerge.pareto import hypervolume
from evomerge.spaces.knots import over_depth

__all__ = ["GROUPS", "LAYERS", "Merge", "front_volume", "made", "profile", "volume"]

Floats = NDArray[np.float64]

LAYERS, GROUPS = 32, 2
"""64 coefficients."""

_PLAIN, _BEST = 0.45, 0.75
"""Accuracy of all coefficients at one half, and of the optimum."""

_DECAY = 0.4
"""Power by which the importance of a frequency over the layers falls."""

_COUPLING = 0.5
"""Correlation between the groups' effects."""

_WAVES, _AMPLITUDE = 8, 0.2
"""How many cosines over the layers an optimum is made of, the k-th weighing 1 / (1 + k), and how far they reach."""

_SHARED = 0.5
"""Correlation between the optima of an instance's tasks."""

_RUGGED = 0.05
"""Standard deviation of the optimum around its smooth profile."""

_REFERENCE = 0.25
"""Accuracy, in each objective, from which hypervolume is measured."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Merge:
    """One task: a quadratic around its optimum, in a rotated space.

    Attributes:
        optimum: `(d,)`.
        root: `(d, d)`; the loss is the squared norm of `root @ (x - optimum)`, 1 for the plain average.
    """

    optimum: Floats
    root: Floats

    def accuracy(self, coefficients: Floats) -> float:
        """True accuracy of a profile `(d,)`."""
        loss = float(np.sum((self.root @ (coefficients - self.optimum)) ** 2))
        return max(_BEST - (_BEST - _PLAIN) * loss, 0.0)


def made(seed: int, task: int = 0) -> Merge:
    """A task of an instance; tasks of one instance differ in their optimum only, up to scale."""
    common, rng = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1 + task))
    depth = np.linspace(0.0, np.pi, LAYERS)
    waves = np.array([np.cos(k * depth) for k in range(_WAVES)])
    shape = (GROUPS, _WAVES)
    strengths = np.sqrt(_SHARED) * common.normal(size=shape) + np.sqrt(1.0 - _SHARED) * rng.normal(size=shape)
    strengths /= 1.0 + np.arange(_WAVES)
    smooth = 0.5 + _AMPLITUDE * strengths @ waves
    optimum = np.clip(smooth + _RUGGED * rng.normal(size=smooth.shape), 0.02, 0.98).ravel()
    rotation = dct(np.eye(LAYERS), norm="ortho", axis=0)
    layers = (1.0 + np.arange(LAYERS))[:, None] ** (-_DECAY) * rotation
    groups = np.linalg.cholesky((1.0 - _COUPLING) * np.eye(GROUPS) + _COUPLING).T
    root = np.kron(groups, layers)
    return Merge(optimum=optimum, root=root / np.linalg.norm(root @ (0.5 - optimum)))


def profile(genome: tuple[float, ...], knots: int) -> Floats:
    """`(d,)`: the coefficients of a genome with so many knots in each group."""
    return np.concatenate([over_depth(genome[group * knots : (group + 1) * knots], LAYERS) for group in range(GROUPS)])


def volume(accuracies: Sequence[Sequence[float]]) -> float:
    """Hypervolume of true accuracies."""
    return hypervolume([[-value for value in row] for row in accuracies], [-_REFERENCE] * len(accuracies[0]))


def front_volume(first: Merge, second: Merge) -> float:
    """Hypervolume of the true front of two tasks, in closed form: minima of weighted sums of two quadratics."""
    bends = [task.root.T @ task.root for task in (first, second)]
    rows = []
    for share in (np.sin(np.linspace(0.0, np.pi / 2, 201)) ** 2).tolist():
        bend = share * bends[0] + (1.0 - share) * bends[1]
        pull = share * bends[0] @ first.optimum + (1.0 - share) * bends[1] @ second.optimum
        best = np.linalg.solve(bend, pull)
        rows.append((first.accuracy(best), second.accuracy(best)))
    return volume(rows)
