"""The table of merge operators: what each one takes. Data only; the arithmetic lives in `evomerge.merging`.

Legend: `w_k` weight of source k, `tau_k = theta_k - theta_0` its task vector, `rho_k` density, `lambda` global scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from evomerge.recipe.gram_table import CHECKPOINT_OPERATORS, GRAM_OPERATORS
from evomerge.recipe.schema import LAMBDA, WEIGHT, Operator, Parameter
from evomerge.recipe.sparse_table import SPARSE_OPERATORS

__all__ = ["OPERATORS"]

_NORMALIZE = (False, True)

_T = Parameter(scope="shared", minimum=0.0, maximum=10.0, low=0.0, high=2.0, default=1.0)
"""How far above the mean an input must rank to matter; from 2 on none does."""
_S = Parameter(scope="shared", minimum=-10.0, maximum=10.0, low=0.3, high=1.5, default=1.0)
"""What counts of a change on inputs that matter."""

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
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
)
