"""Synthetic layer routing with a known truth: accuracy as a function of the path through two models.

Model `a` alone scores one half. Somewhere in `b` lies a block of layers that helps where it stands at its own depth,
whole, and at the right scales; parts of it help little, and every change of model or jump in depth does harm. So all
short steps away from `a` lead down. It ranks encodings and moves; it does not predict what a model scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evomerge.recipe import Hop

__all__ = ["BEST", "DEPTH", "Route", "routed"]

DEPTH = 16
"""Layers of each model."""

_PLAIN, BEST = 0.50, 0.73
"""Accuracy of `a` alone, and of the best path."""

_BLOCK = 4
"""Layers of the block that helps."""

_CROSSING, _SCALE, _JUMP, _STRANGER = 0.04, 0.25, 0.01, 0.015
"""Harm, in units of a logarithm of accuracy: of a change of model; of a scale that misses, times its squared logarithm;
of a jump in depth, times its length to the power 1.5; of a layer of `b` outside the block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One task.

    Attributes:
        first: first layer of the block.
        enter, leave: best scales, as logarithms, from `a` to `b` and back.
    """

    first: int
    enter: float
    leave: float

    def accuracy(self, path: Sequence[Hop]) -> float:
        """True accuracy of a path, from 0 to 1; a source of None is `a`."""
        block = range(self.first, self.first + _BLOCK)
        inside = [hop.source is not None and hop.layer in block for hop in path]
        longest = max(map(len, "".join("x" if hit else " " for hit in self._in_order(path)).split()), default=0)
        strangers = sum(hop.source is not None for hop in path) - sum(inside)
        best = math.log(BEST / _PLAIN) + 2.0 * _CROSSING
        gain = best * min(longest / _BLOCK, 1.0) ** 2
        return _PLAIN * math.exp(gain - _STRANGER * strangers - self._friction(path))

    def _in_order(self, path: Sequence[Hop]) -> list[bool]:
        """Which hops are in the block and follow the layer before them, or are its first."""
        hits = []
        for place, hop in enumerate(path):
            follows = place > 0 and path[place - 1].source == hop.source and path[place - 1].layer == hop.layer - 1
            within = hop.source is not None and self.first <= hop.layer < self.first + _BLOCK
            hits.append(within and (follows or hop.layer == self.first))
        return hits

    def _friction(self, path: Sequence[Hop]) -> float:
        """The harm of all joints, the first and last layer's included."""
        depths = [-1, *(hop.layer for hop in path), DEPTH]
        harm = sum(_JUMP * float(abs(after - before - 1)) ** 1.5 for before, after in pairwise(depths))
        harm += _SCALE * math.log(path[0].scale) ** 2
        for before, after in pairwise(path):
            crosses = before.source != after.source
            wanted = (self.leave if after.source is None else self.enter) if crosses else 0.0
            harm += _CROSSING * crosses + _SCALE * (math.log(after.scale) - wanted) ** 2
        return float(harm)


def routed(seed: int) -> Route:
    """A task of an instance."""
    rng = np.random.default_rng((seed, 7))
    enter, leave = rng.uniform(0.2, 0.6, 2) * rng.choice([-1.0, 1.0], 2)
    return Route(first=int(rng.integers(2, DEPTH - _BLOCK - 1)), enter=float(enter), leave=float(leave))
