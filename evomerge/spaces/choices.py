"""What a parameter space chooses from lists: a transform for each expert, values of the operator's options.

Knows nothing of what the choices do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.errors import Fault
from evomerge.recipe import OPERATORS, OptionValue
from evomerge.spaces.base import Gene

if TYPE_CHECKING:
    from evomerge.config import ParameterSpaceConfig

__all__ = ["OPTION", "TRANSFORM", "choice_genes", "choices_of", "stranger_faults"]

TRANSFORM, OPTION = "transform.", "option."
"""What names of choices begin with, before the expert or the option."""


def choices_of(config: ParameterSpaceConfig, experts: Sequence[str]) -> dict[str, tuple[OptionValue, ...]]:
    """The values that each transform and option of a space may have, by the name of its gene; often only one."""
    transforms = {f"{TRANSFORM}{expert}": config.transforms_of(expert) for expert in experts}
    options = {
        f"{OPTION}{name}": config.operator.choices(name) for name in sorted(OPERATORS[config.operator.name].options)
    }
    return {**transforms, **options}


def choice_genes(choices: Mapping[str, Sequence[OptionValue]]) -> Iterator[Gene]:
    """A gene for each that has more than one value."""
    for name, values in choices.items():
        if len(values) > 1:
            spelled = tuple(str(value).lower() if isinstance(value, bool) else value for value in values)
            yield Gene(name=name, low=0.0, high=1.0, start=0.5 / len(values), choices=spelled)


def stranger_faults(config: ParameterSpaceConfig, experts: Sequence[str]) -> list[Fault]:
    """What names experts that are not there."""
    named = config.transforms if isinstance(config.transforms, dict) else {}
    message = f"expected an expert of the pool ({', '.join(experts)})"
    return [
        Fault(path=f"$.space.transforms.{name}", message=f"{message}; got {name!r}")
        for name in named
        if name not in experts
    ]
