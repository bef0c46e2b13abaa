"""mergekit's merge methods in this package's terms. Data only.

A switch is a method's parameter that is true or false for the whole merge; its values stand for options of the
operator. A value without an entry has no counterpart here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from evomerge.recipe.schema import OptionValue

__all__ = ["METHODS", "METHOD_OF", "PASSTHROUGH", "Method", "Switch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """One switch: mergekit's default, and for each value the options that it stands for."""

    default: bool
    options: Mapping[bool, Mapping[str, OptionValue]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One method and the operator that it is, with the preset `mergekit`.

    Attributes:
        with_base: the operator that it is where a base model is given, if that is another.
        switches: by name; options of later ones go before those of earlier ones.
        absent: parameters of the operator that the method lacks, and the value that it has in their place.
        least: fewest models that it merges, the base apart.
    """

    name: str
    operator: str
    with_base: str | None = None
    switches: Mapping[str, Switch] = field(default_factory=dict)
    absent: Mapping[str, float] = field(default_factory=dict)
    least: int = 1

    @property
    def on_task_vectors(self) -> Method:
        """The method as it is where a base model is given."""
        if self.with_base is None:
            return self
        return replace(self, operator=self.with_base, with_base=None, absent={**self.absent, "lambda": 1.0})


def _normalize(*, default: bool) -> Switch:
    return Switch(default=default, options={value: {"normalize": value} for value in (False, True)})


def _divide(*, default: bool) -> Switch:
    """`normalize` of the methods that elect a sign: divide by the weights of those that agree."""
    return Switch(default=default, options={True: {"aggregate": "weighted_mean"}, False: {"aggregate": "sum"}})


_KEEP = Switch(default=False, options={False: {}})
_RESCALE = Switch(default=True, options={True: {"rescale": "l1"}, False: {"rescale": "none"}})
_SLICES = {  # what mergekit calls row-wise takes the slices along the first axis
    "nuslerp_row_wise": Switch(default=False, options={False: {"per": "row"}, True: {"per": "column"}}),
    "nuslerp_flatten": Switch(default=True, options={True: {"per": "tensor"}, False: {}}),
}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(name="linear", operator="linear", switches={"normalize": _normalize(default=True)}),
            Method(name="slerp", operator="slerp"),
            Method(
                name="task_arithmetic", operator="task_arithmetic", switches={"normalize": _normalize(default=False)}
            ),
            Method(name="ties", operator="ties", switches={"normalize": _divide(default=True), "rescale": _KEEP}),
            Method(
                name="dare_linear",
                operator="dare_linear",
                switches={"normalize": _normalize(default=False), "rescale": _RESCALE},
            ),
            Method(
                name="dare_ties",
                operator="dare_ties",
                switches={"normalize": _divide(default=False), "rescale": _RESCALE},
            ),
            Method(
                name="breadcrumbs",
                operator="breadcrumbs",
                switches={"normalize": _normalize(default=False), "rescale": _KEEP},
            ),
            Method(
                name="breadcrumbs_ties",
                operator="breadcrumbs_ties",
                switches={"normalize": _divide(default=False), "rescale": _KEEP},
            ),
            Method(
                name="della_linear",
                operator="della_linear",
                switches={"normalize": _normalize(default=False), "rescale": _RESCALE},
            ),
            Method(name="della", operator="della", switches={"normalize": _divide(default=True), "rescale": _RESCALE}),
            Method(name="sce", operator="sce"),
            Method(name="ram", operator="ram"),
            Method(name="ramplus_tl", operator="ram_plus"),
            Method(name="nearswap", operator="nearswap"),
            Method(name="nuslerp", operator="nuslerp", with_base="nuslerp_delta", switches=_SLICES, least=2),
            Method(
                name="multislerp",
                operator="multislerp",
                with_base="multislerp_delta",
                switches={"normalize_weights": Switch(default=True, options={True: {}})},
            ),
            Method(name="karcher", operator="karcher", absent={"weight": 1.0}),
            Method(
                name="model_stock",
                operator="model_stock",
                switches={
                    "filter_wise": Switch(default=False, options={False: {"per": "tensor"}, True: {"per": "row"}})
                },
                absent={"lambda": 1.0},
                least=2,
            ),
        )
    }
)
"""By mergekit's names."""

PASSTHROUGH = Method(name="passthrough", operator="linear", absent={"weight": 1.0})
"""Layers as they are, of one model a slice: a path beside a merge of one model."""

METHOD_OF: Mapping[str, Method] = MappingProxyType(
    {form.operator: form for method in METHODS.values() for form in (method, method.on_task_vectors)}
)
"""By the operator that a method is."""
