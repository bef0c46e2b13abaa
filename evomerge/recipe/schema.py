"""What describes a merge operator: its parameters, options and presets, and the parameters that many share.

Legend: `w_k` weight of source k, `tau_k = theta_k - theta_0` its task vector, `rho_k` density, `lambda` global scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["DENSITY", "LAMBDA", "OMEGA", "WEIGHT", "Operator", "OptionValue", "Parameter", "Preset"]

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
        decimals: places behind the point that a recipe keeps. Six are far below what bf16 weights can tell apart (their
            step is 4e-3); what is compared with changes of weights needs more.
    """

    scope: Literal["source", "shared"]
    minimum: float
    maximum: float
    low: float
    high: float
    default: float | None
    decimals: int = 6


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
        reads_base: the base's weights matter beyond being what task vectors are measured from.
        adds: a weighted sum of task vectors, whose magnitudes decide nothing: small errors in them stay small.
    """

    name: str
    parameters: Mapping[str, Parameter]
    options: Mapping[str, tuple[OptionValue, ...]] = field(default_factory=dict)
    presets: Mapping[Preset, Mapping[str, OptionValue]]
    needs_base: bool
    max_sources: int | None = None
    random: bool = False
    reads_base: bool = False
    adds: bool = False

    @property
    def core(self) -> bool:
        """Whether it can work in core space: on task vectors alone."""
        return self.needs_base and not self.reads_base

    @property
    def modifiers(self) -> Mapping[str, Parameter]:
        """Parameters of what is done to any merge on top of a base; a recipe has only those not at their defaults."""
        return {"omega": OMEGA} if self.needs_base else {}

    @property
    def adjustable(self) -> Mapping[str, Parameter]:
        """All that can be searched or fixed: parameters and modifiers."""
        return {**self.parameters, **self.modifiers}


WEIGHT = Parameter(scope="source", minimum=-10.0, maximum=10.0, low=0.0, high=1.0, default=None)
DENSITY = Parameter(scope="source", minimum=0.0, maximum=1.0, low=0.1, high=1.0, default=1.0)
LAMBDA = Parameter(scope="shared", minimum=-10.0, maximum=10.0, low=0.3, high=1.5, default=1.0)
OMEGA = Parameter(scope="shared", minimum=0.0, maximum=1.0, low=0.2, high=1.0, default=1.0)
"""Share of a change that is left on the input that the base uses most; on others, more (AIM)."""
