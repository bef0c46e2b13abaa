"""Crossing of two merges at a split point, in terms of coefficients: what lets a population breed recipes.

Children are recipes over the same pool models as their parents, however long the line of ancestors: a linear mixture of
linear mixtures is one. Knows nothing of who breeds with whom.

Legend: P places of a model in order of depth, K pool models; `A[p, k]` coefficient of model k at place p.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evomerge.spaces.base import Genome, SearchSpace

__all__ = ["Breeding", "Floats", "crossed", "spherical"]

Floats = NDArray[np.float64]

_SMALL = 1e-4
"""Sine of an angle below which shares on the sphere differ from linear ones by less than 1e-8."""


@runtime_checkable
class Breeding(SearchSpace, Protocol):
    """A search space in which two genomes have children."""

    @property
    def known(self) -> tuple[Genome, ...]:
        """The first ancestors: each model alone; at least two."""

    @property
    def splits(self) -> int:
        """How many split points there are."""

    def cross(self, first: Genome, second: Genome, *, split: int, share: float) -> Genome:
        """A child of two genomes.

        Args:
            first: one parent.
            second: the other.
            split: how many places, in order of depth, lie left of the split; 0 to `splits` - 1.
            share: of the second parent, from 0 to 1, on the left; right of the split it is that of the first.

        Raises:
            ValueError: a genome of another length, or what is measured of the models is not known.
        """


def spherical(cosine: float, share: float) -> tuple[float, float]:
    """What two vectors count on the arc between them (SLERP, Shoemake 1985).

    Linear where the vectors are almost parallel, or opposite: there the arc is a line, or any.

    Args:
        cosine: of the angle between them.
        share: of the way from the first to the second.
    """
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    sine = math.sin(angle)
    if sine < _SMALL:
        return 1.0 - share, share
    return math.sin((1.0 - share) * angle) / sine, math.sin(share * angle) / sine


def crossed(first: Floats, second: Floats, *, split: int, share: float, cosine: float = 1.0) -> Floats:
    """Coefficients of a child, `[P, K]` like its parents' (M2N2, arXiv 2508.16204, section 3).

    Args:
        first: `A` of one parent.
        second: `A` of the other.
        split: places left of the split, where `share` is the second parent's; right of it, the first's.
        share: from 0 to 1.
        cosine: of the angle between the two whole parents; 1 mixes linearly.
    """
    left, right = spherical(cosine, share), spherical(cosine, 1.0 - share)
    shares = np.where(np.arange(len(first))[:, None] < split, left, right)
    child: Floats = shares[:, :1] * first + shares[:, 1:] * second
    return child
