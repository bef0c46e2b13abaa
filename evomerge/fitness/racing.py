"""Which candidates deserve more items: those of which it is still open whether they belong on the front, or survive.

Scores are taken as independent and normal. Rivals that answered the same items are correlated, so their differences
are surer than is assumed here: a race goes on for too long rather than ends too soon. Knows nothing of items,
estimators or engines.

Legend: c candidates, q objectives; `means` and `sds` `[c, q]`, higher is better.
"""

from __future__ import annotations

from collections.abc import Iterator

import moocore
import numpy as np
from numpy.typing import NDArray

from evomerge.fitness.estimate import Floats

__all__ = ["DRAWS", "front_probability", "halved", "survival_probability", "undecided"]

DRAWS = 256
"""Draws from the scores' distributions: a probability near one half is then known to 0.03."""


def front_probability(means: Floats, sds: Floats, generator: np.random.Generator, draws: int = DRAWS) -> Floats:
    """For each candidate, how probably no other one dominates it `[c]`.

    Example:
        >>> means, sds = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), np.full((3, 2), 1e-3)
        >>> front_probability(means, sds, np.random.default_rng(0)).tolist()
        [1.0, 1.0, 0.0]
    """
    on_front = [moocore.is_nondominated(-sample, keep_weakly=True) for sample in _samples(means, sds, generator, draws)]
    return np.asarray(np.mean(on_front, axis=0))


def survival_probability(
    means: Floats, sds: Floats, survivors: int, generator: np.random.Generator, draws: int = DRAWS
) -> Floats:
    """For each candidate, how probably it is among the best `survivors` `[c]`.

    Args:
        means: `[c, 1]`.
        sds: `[c, 1]`.
        survivors: how many go on, at least 1.
        generator: where the draws come from.
        draws: how many.
    """
    samples = np.stack([sample[:, 0] for sample in _samples(means, sds, generator, draws)])
    ranks = (-samples).argsort(axis=1, kind="stable").argsort(axis=1)
    return np.asarray((ranks < survivors).mean(axis=0))


def undecided(probabilities: Floats, sds: Floats, *, sure: float, target_sd: float) -> NDArray[np.bool_]:
    """Which candidates more items may still decide `[c]`.

    Args:
        probabilities: of belonging, `[c]`.
        sds: of their scores, `[c, q]`.
        sure: a probability from here on, or below `1 - sure`, counts as decided.
        target_sd: scores that are known this well need no more items.
    """
    open_ = (probabilities < sure) & (probabilities > 1.0 - sure)
    return np.asarray(open_ & (sds > target_sd).any(axis=1))


def halved(scores: Floats) -> NDArray[np.bool_]:
    """The better half of the candidates, of odd numbers the larger one; of equal ones those that come first `[c]`.

    Successive halving (Jamieson and Talwalkar 2016, "Non-stochastic best arm identification"): the simple alternative.

    Args:
        scores: `[c]`.
    """
    kept = np.zeros(len(scores), dtype=bool)
    kept[(-scores).argsort(kind="stable")[: (len(scores) + 1) // 2]] = True
    return kept


def _samples(means: Floats, sds: Floats, generator: np.random.Generator, draws: int) -> Iterator[Floats]:
    for _ in range(draws):
        yield means + sds * generator.standard_normal(means.shape)
