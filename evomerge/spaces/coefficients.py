"""Coefficients that were found elsewhere, brought onto the genes of a parameter space.

A gene's start is the least-squares fit of its knots to the values over depth, averaged over the modules that share
genes, and clipped to the gene's range. So a fine field arrives smoothed; with one knot per layer and one group per
module it arrives as it is. Knows nothing of where the coefficients come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.errors import ConfigError, Fault
from evomerge.recipe import DEPTH_ROLES, EDGE_ROLES, OPERATORS, Role
from evomerge.spaces.knots import fit_knots

if TYPE_CHECKING:
    from evomerge.config import Coefficient, ParameterSpaceConfig

__all__ = ["starting_values"]

Place = tuple[str | None, Role, int | None]
"""Expert (None if shared), module role, layer (None outside the layers)."""


def starting_values(
    config: ParameterSpaceConfig, knots: Mapping[str, int], experts: Sequence[str], layers: int
) -> dict[str, float]:
    """Natural start values by gene name, for every gene that the configuration's coefficients speak of.

    Args:
        config: the space; its `start_from` holds the coefficients.
        knots: knots over depth, by parameter.
        experts: pool names.
        layers: number of layers of every model.

    Raises:
        ConfigError: every expert and layer that is unknown or missing, and every value that stands twice.
    """
    fields: dict[str, dict[Place, float]] = {}
    faults: list[Fault] = []
    for index, coefficient in enumerate(config.start_from):
        field = fields.setdefault(coefficient.parameter, {})
        wrong = _misplaced(coefficient, config, experts, layers)
        for place in () if wrong else _places(coefficient):
            wrong = f"{_told(place)} has two values; keep one" if place in field else wrong
            field[place] = coefficient.value
        if wrong:
            faults.append(Fault(path=f"$.space.start_from[{index}]", message=wrong))
    for name, field in fields.items():
        sources: Sequence[str | None] = experts if _is_per_source(config, name) else [None]
        faults += [Fault(path="$.space.start_from", message=gap) for gap in _gaps(name, field, sources, layers)]
    if faults:
        raise ConfigError("search space", faults)
    return {gene: value for name, field in fields.items() for gene, value in _fitted(config, name, field, knots[name])}


def _places(coefficient: Coefficient) -> Iterator[Place]:
    for role in DEPTH_ROLES if coefficient.role is None else (coefficient.role,):
        yield coefficient.expert, role, coefficient.layer


def _told(place: Place) -> str:
    expert, role, layer = place
    return ", ".join([*([] if expert is None else [expert]), *([] if layer is None else [f"layer {layer}"]), role])


def _is_per_source(config: ParameterSpaceConfig, name: str) -> bool:
    return OPERATORS[config.operator.name].adjustable[name].scope == "source"


def _misplaced(
    coefficient: Coefficient, config: ParameterSpaceConfig, experts: Sequence[str], layers: int
) -> str | None:
    name, expert = coefficient.parameter, coefficient.expert
    if _is_per_source(config, name) and expert not in experts:
        return f"expected an expert of the pool ({', '.join(experts)}); got {expert!r}"
    if not _is_per_source(config, name) and expert is not None:
        return f"{name} is shared by all experts; leave out the expert; got {expert!r}"
    if coefficient.role in EDGE_ROLES and config.genes[name].edges == "first":
        return (
            f"{coefficient.role} has no genes of its own: it takes the first layer's, because {name} has edges: first; "
            f"leave its value out, or set $.space.genes.{name}.edges to own"
        )
    if coefficient.layer is not None and coefficient.layer >= layers:
        return f"expected a layer from 0 to {layers - 1}; got {coefficient.layer}"
    return None


def _gaps(name: str, field: Mapping[Place, float], sources: Sequence[str | None], layers: int) -> Iterator[str]:
    """What is missing; embeddings and head may be."""
    for source in sources:
        for role in DEPTH_ROLES:
            missing = [str(layer) for layer in range(layers) if (source, role, layer) not in field]
            if missing:
                of = "" if source is None else f" of {source}"
                yield f"{name}{of}: no value for {role} in layer(s) {', '.join(missing)}; give one for every layer"


def _fitted(
    config: ParameterSpaceConfig, name: str, field: Mapping[Place, float], knots: int
) -> Iterator[tuple[str, float]]:
    layers = 1 + max(layer for _, _, layer in field if layer is not None)
    for source in dict.fromkeys(source for source, _, _ in field):
        of = "" if source is None else f".{source}"
        for group, roles in config.groups.items():
            profile = [sum(field[source, role, at] for role in roles) / len(roles) for at in range(layers)]
            for knot, value in enumerate(fit_knots(profile, knots)):
                yield f"{name}.{group}{of}.k{knot}", value
        for role in EDGE_ROLES:
            if (source, role, None) in field:
                yield f"{name}.{role}{of}", field[source, role, None]
