"""How an item's expected score follows from ability: the two links and their moments.

Both are canonical generalized linear models with mean `m(eta)`, variance `phi * V(m)` and log likelihood
`(y eta - b(eta)) / phi`, `b' = m`. Knows nothing of banks.

Legend: `eta = a . theta - d`; `phi` an item's dispersion.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.special import expit

from evomerge.fitness.estimate import Floats

__all__ = ["Link", "cumulant", "link_mean", "smoothed_mean", "unit_variance"]

Link = Literal["logistic", "gaussian"]
"""How scores are spread around their expectation.

`logistic`: scores in [0, 1]. Right-or-wrong items have `phi = 1`, which is the 2PL. Graded ones have `phi < 1`: mean
and variance of a Beta score with precision `1 / phi - 1`, fitted by quasi-likelihood (Papke and Wooldridge, 1996), for
which scores of exactly 0 and 1 are no trouble. `gaussian`: any real score, `phi` its residual variance."""


def link_mean(link: Link, eta: Floats) -> Floats:
    """Expected score `m(eta)`."""
    return np.asarray(expit(eta)) if link == "logistic" else eta


def unit_variance(link: Link, mean: Floats) -> Floats:
    """`V(m)`, which is also `dm / deta`."""
    return mean * (1.0 - mean) if link == "logistic" else np.ones_like(mean)


def cumulant(link: Link, eta: Floats) -> Floats:
    """`b(eta)`, finite for any finite `eta`."""
    return np.logaddexp(0.0, eta) if link == "logistic" else 0.5 * eta**2


def smoothed_mean(link: Link, eta: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Mean of `m` and of `dm / deta` when `eta` is normal with some variance.

    Logistic: the probit approximation of MacKay (1992), `m(eta / sqrt(1 + pi variance / 8))`.
    """
    if link == "gaussian":
        return eta, np.ones_like(eta)
    shrink = 1.0 / np.sqrt(1.0 + math.pi / 8.0 * variance)
    mean = expit(eta * shrink)
    return mean, mean * (1.0 - mean) * shrink
