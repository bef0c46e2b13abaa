"""Operators that trim, drop, elect or select: what each one takes. Data only.

Legend: `x_k = theta_k - theta_0` the task vector of source k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evomerge.recipe.schema import DENSITY, LAMBDA, WEIGHT, Operator, OptionValue, Parameter, Preset

__all__ = ["SPARSE_OPERATORS"]

_FULL_WEIGHT = replace(WEIGHT, default=1.0)  # what is averaged over the agreeing sources needs no 1 / K
_SHARE = Parameter(scope="shared", minimum=0.0, maximum=1.0, low=0.1, high=1.0, default=1.0)

_CHANCE = replace(DENSITY, decimals=4)
"""Density of a random mask, of which there are 10,000 (see `merging.masks`)."""
_GAMMA = replace(DENSITY, low=0.0, high=0.05, default=0.01)
"""Share of the largest changes that are dropped as outliers."""
_WINDOW = replace(DENSITY, maximum=0.5, low=0.0, high=0.3, default=0.15)
"""Half the range of keep probabilities; cut to `min(density, 1 - density)`, so that these stay in [0, 1]."""
_LAMBDA_T = replace(DENSITY, maximum=10.0, low=0.2, high=0.6, default=0.4)
"""How much a source's change must outweigh those of all others to matter."""
_K = replace(_SHARE, maximum=64.0, low=1.0, high=3.0, default=2.0)
"""How many sources must matter; more than there are keep the base."""
_EPSILON = replace(_SHARE, low=0.0, high=1e-4, default=1e-5, decimals=12)
"""Changes up to this size are none."""
_R = replace(_SHARE, maximum=10.0, low=0.0, high=1.0, default=0.1)
"""How much what a source changed alone gains from the share that others changed too."""
_ALPHA = replace(_SHARE, low=0.0, high=1.0, default=0.2)
"""Largest such share that counts."""
_STEP = replace(_SHARE, maximum=10.0, low=0.0, high=0.01, default=1e-4, decimals=12)
"""Largest change of a weight."""
_FENCE = replace(_SHARE, minimum=-10.0, maximum=10.0, low=0.0, high=3.0, default=1.5)
"""Interquartile ranges above the median from which on a change is important."""

_NORMALIZE = (False, True)
_VOTE = ("unweighted", "weighted")
_AGGREGATE = ("mean", "weighted_mean", "sum")
_TRIM = ("model", "tensor")
_RESCALE = ("inverse", "l1", "none")
_RANK = ("row", "tensor")

_AGREED: Mapping[Preset, Mapping[str, OptionValue]] = {"paper": {}, "mergekit": {}}

SPARSE_OPERATORS = (
    Operator(
        name="ties",
        parameters={"weight": _FULL_WEIGHT, "density": DENSITY, "lambda": LAMBDA},
        options={"trim": _TRIM, "vote": _VOTE, "aggregate": _AGGREGATE},
        presets={
            "paper": {"trim": "model", "vote": "unweighted", "aggregate": "mean"},
            "mergekit": {"trim": "tensor", "vote": "weighted", "aggregate": "weighted_mean"},
        },
        needs_base=True,
    ),
    Operator(
        name="dare_linear",
        parameters={"weight": WEIGHT, "density": _CHANCE, "lambda": LAMBDA},
        options={"rescale": _RESCALE, "normalize": _NORMALIZE},
        presets={
            "paper": {"rescale": "inverse", "normalize": False},
            "mergekit": {"rescale": "l1", "normalize": False},
        },
        needs_base=True,
        random=True,
        adds=True,
    ),
    Operator(
        name="dare_ties",
        parameters={"weight": _FULL_WEIGHT, "density": _CHANCE, "lambda": LAMBDA},
        options={"rescale": _RESCALE, "vote": _VOTE, "aggregate": _AGGREGATE},
        presets={
            "paper": {"rescale": "inverse", "vote": "unweighted", "aggregate": "mean"},
            "mergekit": {"rescale": "l1", "vote": "weighted", "aggregate": "sum"},
        },
        needs_base=True,
        random=True,
    ),
    Operator(
        name="breadcrumbs",
        parameters={"weight": WEIGHT, "density": DENSITY, "gamma": _GAMMA, "lambda": LAMBDA},
        options={"normalize": _NORMALIZE},
        presets={"paper": {"normalize": False}, "mergekit": {"normalize": False}},
        needs_base=True,
    ),
    Operator(
        name="breadcrumbs_ties",
        parameters={"weight": _FULL_WEIGHT, "density": DENSITY, "gamma": _GAMMA, "lambda": LAMBDA},
        options={"vote": _VOTE, "aggregate": _AGGREGATE},
        presets={
            "paper": {"vote": "unweighted", "aggregate": "mean"},
            "mergekit": {"vote": "weighted", "aggregate": "sum"},
        },
        needs_base=True,
    ),
    Operator(
        name="della_linear",
        parameters={"weight": WEIGHT, "density": _CHANCE, "epsilon": _WINDOW, "lambda": LAMBDA},
        options={"rank": _RANK, "rescale": _RESCALE, "normalize": _NORMALIZE},
        presets={
            "paper": {"rank": "row", "rescale": "inverse", "normalize": False},
            "mergekit": {"rank": "row", "rescale": "l1", "normalize": False},
        },
        needs_base=True,
        random=True,
        adds=True,
    ),
    Operator(
        name="della",
        parameters={"weight": _FULL_WEIGHT, "density": _CHANCE, "epsilon": _WINDOW, "lambda": LAMBDA},
        options={"rank": _RANK, "rescale": _RESCALE, "vote": _VOTE, "aggregate": _AGGREGATE},
        presets={
            "paper": {"rank": "row", "rescale": "inverse", "vote": "unweighted", "aggregate": "mean"},
            "mergekit": {"rank": "row", "rescale": "l1", "vote": "weighted", "aggregate": "weighted_mean"},
        },
        needs_base=True,
        random=True,
    ),
    Operator(
        name="consensus",
        parameters={"weight": _FULL_WEIGHT, "lambda_t": _LAMBDA_T, "k": _K, "lambda": LAMBDA},
        presets=_AGREED,
        needs_base=True,
    ),
    Operator(
        name="magmax",
        parameters={"weight": _FULL_WEIGHT, "lambda": LAMBDA},
        presets=_AGREED,
        needs_base=True,
    ),
    Operator(
        name="exclusive",
        parameters={"weight": _FULL_WEIGHT, "density": DENSITY, "lambda": LAMBDA},
        presets=_AGREED,
        needs_base=True,
    ),
    Operator(
        name="sce",
        parameters={"select_topk": _SHARE},
        options={"floor": (False, True)},
        presets={"paper": {"floor": False}, "mergekit": {"floor": True}},
        needs_base=True,
    ),
    Operator(
        name="ram",
        parameters={"epsilon": _EPSILON},
        presets=_AGREED,
        needs_base=True,
    ),
    Operator(
        name="ram_plus",
        parameters={"epsilon": _EPSILON, "r": _R, "alpha": _ALPHA},
        presets=_AGREED,
        needs_base=True,
    ),
    Operator(
        name="nearswap",
        parameters={"t": _STEP},
        presets=_AGREED,
        needs_base=True,
        max_sources=1,
    ),
    Operator(
        name="fusion",
        parameters={"fence": _FENCE},
        presets=_AGREED,
        needs_base=True,
        max_sources=1,
        reads_base=True,
    ),
)
