"""The table of merge operators: what each one takes. Data only; the arithmetic lives in `evomerge.merging`.

Legend: `w_k` weight of source k, `tau_k = theta_k - theta_0` its task vector, `rho_k` density, `lambda` global scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from evomerge.recipe.gram_table import CHECKPOINT_OPERATORS, GRAM_OPERATORS
from evomerge.recipe.schema import LAMBDA, WEIGHT, Operator
from evomerge.recipe.sparse_table import SPARSE_OPERATORS

__all__ = ["OPERATORS"]

_NORMALIZE = (False, True)

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
            ),
            *SPARSE_OPERATORS,
            *GRAM_OPERATORS,
            *CHECKPOINT_OPERATORS,
        )
    }
)
