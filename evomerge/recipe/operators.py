"""The table of merge operators: what each one takes. Data only; the arithmetic lives in `evomerge.merging`.

Legend: `w_k` weight of source k, `tau_k = theta_k - theta_0` its task vector, `rho_k` density, `lambda` global scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from evomerge.recipe.gram_table import CHECKPOINT_OPERATORS, GRAM_OPERATORS
from evomerge.recipe.schema import LAMBDA, WEIGHT, Operator, Parameter
from evomerge.recipe.sparse_table import SPARSE_OPERATORS

__all__ = ["OPERATORS", "Lowering", "plugged_lowering", "register_operator"]

Lowering = Callable[..., Any]

_NORMALIZE = (False, True)

_T = Parameter(scope="shared", minimum=0.0, maximum=10.0, low=0.0, high=2.0, default=1.0)
"""How far above the mean an input must rank to matter; from 2 on none does."""
_S = Parameter(scope="shared", minimum=-10.0, maximum=10.0, low=0.3, high=1.5, default=1.0)
"""What counts of a change on inputs that matter."""

_TABLE = {
    operator.name: operator
    for operator in (
        Operator(
            name="linear",
            parameters={"weight": WEIGHT},
            options={"normalize": _NORMALIZE},
            presets={"paper": {"normalize": True}, "mergekit": {"normalize": True}},
            needs_base=False,
        ),
        Operator(
            name="task_arithmetic",
            parameters={"weight": WEIGHT, "lambda": LAMBDA},
            options={"normalize": _NORMALIZE},
            presets={"paper": {"normalize": False}, "mergekit": {"normalize": False}},
            needs_base=True,
            adds=True,
        ),
        Operator(
            name="iso_c",
            parameters={"weight": replace(WEIGHT, default=1.0), "lambda": replace(LAMBDA, high=2.0)},
            presets={"paper": {}, "mergekit": {}},
            needs_base=True,
        ),
        Operator(
            name="widen",
            parameters={"weight": replace(WEIGHT, default=1.0), "t": _T, "s": _S, "lambda": LAMBDA},
            presets={"paper": {}, "mergekit": {}},
            needs_base=True,
            reads_base=True,
            adds=True,
        ),
        *SPARSE_OPERATORS,
        *GRAM_OPERATORS,
        *CHECKPOINT_OPERATORS,
    )
}

OPERATORS: Mapping[str, Operator] = MappingProxyType(_TABLE)
"""By name; those that plugins register are added."""

_PLUGGED: dict[str, Lowering] = {}


def register_operator(operator: Operator) -> Callable[[Lowering], Lowering]:
    """A decorator that adds a merge operator of one's own, with the function that lowers its recipes.

    Args:
        operator: what it takes. The decorated function gets a recipe and a model pool, and gives the kernel of each
            tensor, as a function of its `evomerge.merging.pool.TensorSpec`; what it imports of `evomerge.merging` it
            imports when called, because a table of operators is read where no torch is.

    Raises:
        ValueError: the name is taken by another module's operator.
    """

    def add(lowering: Lowering) -> Lowering:
        taken = _PLUGGED.get(operator.name)
        if operator.name in _TABLE and (taken is None or taken.__module__ != lowering.__module__):
            raise ValueError(f"the operator {operator.name!r} is there already; choose another name")
        _TABLE[operator.name], _PLUGGED[operator.name] = operator, lowering
        return lowering

    return add


def plugged_lowering(name: str) -> Lowering | None:
    """The function that lowers recipes of an operator that a plugin registered; None for one of evomerge's own."""
    return _PLUGGED.get(name)
