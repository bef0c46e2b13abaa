"""Rows of the table of operators: those that need only scalar products of the weights, and averages of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evomerge.recipe.schema import LAMBDA, WEIGHT, Operator, OptionValue, Parameter, Preset

__all__ = ["CHECKPOINT_OPERATORS", "GRAM_OPERATORS"]

_T = Parameter(scope="shared", minimum=0.0, maximum=1.0, low=0.0, high=1.0, default=0.5)
_METRIC = replace(WEIGHT, minimum=1e-6, maximum=1e9, low=0.1, high=1.0)
_POWER = Parameter(scope="shared", minimum=-20.0, maximum=20.0, low=-4.0, high=4.0, default=1.0)
_DECAY = Parameter(scope="shared", minimum=0.01, maximum=100.0, low=0.25, high=4.0, default=1.0)

_PULL = replace(WEIGHT, minimum=0.0)
"""A mean on the sphere is the point nearest to all; with weights of both signs there need not be one, and the steps
towards it amplify any rounding."""

_ON_WEIGHTS = {"weight": WEIGHT}
_ON_TASK_VECTORS = {"weight": WEIGHT, "lambda": LAMBDA}
_SAME: Mapping[Preset, Mapping[str, OptionValue]] = {"paper": {}, "mergekit": {}}
_WHOLE = {"per": "tensor"}

GRAM_OPERATORS = (
    Operator(name="slerp", parameters={"t": _T}, presets=_SAME, needs_base=True, max_sources=1, reads_base=True),
    Operator(
        name="nuslerp",
        parameters=_ON_WEIGHTS,
        options={"per": ("tensor", "row", "column")},
        presets={"paper": _WHOLE, "mergekit": _WHOLE},
        needs_base=False,
        max_sources=2,
    ),
    Operator(
        name="nuslerp_delta",
        parameters=_ON_TASK_VECTORS,
        options={"per": ("tensor", "row", "column")},
        presets={"paper": _WHOLE, "mergekit": _WHOLE},
        needs_base=True,
        max_sources=2,
        adds=True,
    ),
    Operator(name="multislerp", parameters=_ON_WEIGHTS, presets=_SAME, needs_base=False),
    Operator(name="multislerp_delta", parameters=_ON_TASK_VECTORS, presets=_SAME, needs_base=True, adds=True),
    Operator(name="karcher", parameters={"weight": _PULL}, presets=_SAME, needs_base=False),
    Operator(
        name="karcher_delta",
        parameters={"weight": _PULL, "lambda": LAMBDA},
        presets=_SAME,
        needs_base=True,
        adds=True,
    ),
    Operator(
        name="model_stock",
        parameters={"lambda": LAMBDA},
        options={"per": ("tensor", "row"), "floor": (False, True)},
        presets={"paper": {"per": "tensor", "floor": False}, "mergekit": {"per": "tensor", "floor": True}},
        needs_base=True,
        adds=True,
    ),
    Operator(
        name="metagpt",
        parameters={"lambda": LAMBDA},
        options={"per": ("model", "tensor")},
        presets={"paper": {"per": "model"}, "mergekit": {"per": "model"}},
        needs_base=True,
        adds=True,
    ),
)
"""`per`: what has an angle or a coefficient of its own; `floor`: products of two norms count as at least 1e-6."""

CHECKPOINT_OPERATORS = (
    Operator(name="metric_average", parameters={"metric": _METRIC, "power": _POWER}, presets=_SAME, needs_base=False),
    Operator(name="decay_average", parameters={"power": _DECAY}, presets=_SAME, needs_base=False),
)
"""Linear merges whose weights follow from less: see `evomerge.recipe.averaging`."""
