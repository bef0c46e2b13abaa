"""The table of merge operators: what each one takes. Data only; the arithmetic lives in `evomerge.merging`.

Legend: `w_k` weight of source k, `tau_k = theta_k - theta_0` its task vector, `rho_k` density, `lambda` global scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

__all__ = ["OPERATORS", "Operator", "OptionValue", "Parameter", "Preset"]

OptionValue = str | bool
Preset = Literal["paper", "mergekit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """One number of an operator, free to vary over depth and module.

    Attributes:
        scope: `source`: one value per source model; `shared`: one value per tensor.
        minimum, maximum: legal values, inclusive.
        low, high: the range that a search uses unless told otherwise.
        default: the value when it is neither searched nor fixed; None means 1 / number of sources.
    """

    scope: Literal["source", "shared"]
    minimum: float
    maximum: float
    low: float
    high: float
    default: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """What a merge operator takes.

    Attributes:
        parameters: by name.
        options: legal values of every option, by name.
        presets: for each preset, the value of every option. `paper` follows the publication; `mergekit` reproduces
            that tool. Operators on which both agree list the same values twice.
        needs_base: works on task vectors (or, for SLERP, from the base).
        max_sources: most source models it can take; None means any number.
        random: draws masks, so that the recipe's seed matters.
    """

    name: str
    parameters: Mapping[str, Parameter]
    options: Mapping[str, tuple[OptionValue, ...]] = field(default_factory=dict)
    presets: Mapping[Preset, Mapping[str, OptionValue]]
    needs_base: bool
    max_sources: int | None = None
    random: bool = False


_WEIGHT = Parameter(scope="source", minimum=-10.0, maximum=10.0, low=0.0, high=1.0, default=None)
_FULL_WEIGHT = replace(_WEIGHT, default=1.0)  # what is averaged over the agreeing sources needs no 1 / K
_DENSITY = Parameter(scope="source", minimum=0.0, maximum=1.0, low=0.1, high=1.0, default=1.0)
_LAMBDA = Parameter(scope="shared", minimum=-10.0, maximum=10.0, low=0.3, high=1.5, default=1.0)
_T = Parameter(scope="shared", minimum=0.0, maximum=1.0, low=0.0, high=1.0, default=0.5)

_NORMALIZE = (False, True)
_VOTE = ("unweighted", "weighted")
_AGGREGATE = ("mean", "weighted_mean", "sum")
_TRIM = ("model", "tensor")
_RESCALE = ("inverse", "l1", "none")

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        operator.name: operator
        for operator in (
            Operator(
                name="linear",
                parameters={"weight": _WEIGHT},
                options={"normalize": _NORMALIZE},
                presets={"paper": {"normalize": True}, "mergekit": {"normalize": True}},
                needs_base=False,
            ),
            Operator(
                name="task_arithmetic",
                parameters={"weight": _WEIGHT, "lambda": _LAMBDA},
                options={"normalize": _NORMALIZE},
                presets={"paper": {"normalize": False}, "mergekit": {"normalize": False}},
                needs_base=True,
            ),
            Operator(
                name="ties",
                parameters={"weight": _FULL_WEIGHT, "density": _DENSITY, "lambda": _LAMBDA},
                options={"trim": _TRIM, "vote": _VOTE, "aggregate": _AGGREGATE},
                presets={
                    "paper": {"trim": "model", "vote": "unweighted", "aggregate": "mean"},
                    "mergekit": {"trim": "tensor", "vote": "weighted", "aggregate": "weighted_mean"},
                },
                needs_base=True,
            ),
            Operator(
                name="dare_linear",
                parameters={"weight": _WEIGHT, "density": _DENSITY, "lambda": _LAMBDA},
                options={"rescale": _RESCALE, "normalize": _NORMALIZE},
                presets={
                    "paper": {"rescale": "inverse", "normalize": False},
                    "mergekit": {"rescale": "l1", "normalize": False},
                },
                needs_base=True,
                random=True,
            ),
            Operator(
                name="dare_ties",
                parameters={"weight": _FULL_WEIGHT, "density": _DENSITY, "lambda": _LAMBDA},
                options={"rescale": _RESCALE, "vote": _VOTE, "aggregate": _AGGREGATE},
                presets={
                    "paper": {"rescale": "inverse", "vote": "unweighted", "aggregate": "mean"},
                    "mergekit": {"rescale": "l1", "vote": "weighted", "aggregate": "sum"},
                },
                needs_base=True,
                random=True,
            ),
            Operator(
                name="slerp",
                parameters={"t": _T},
                presets={"paper": {}, "mergekit": {}},
                needs_base=True,
                max_sources=1,
            ),
        )
    }
)
