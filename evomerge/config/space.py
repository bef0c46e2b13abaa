"""What a user may write about a search space. Knows nothing of genomes or models on disk."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Finite, Name, Strict
from evomerge.config.coefficients import Coefficient
from evomerge.recipe import OPERATORS, OptionValue, Preset

__all__ = ["GeneRange", "OperatorConfig", "ParameterSpaceConfig"]


class OperatorConfig(Strict):
    """Which merge operator, and its fixed options."""

    name: str
    """A merge operator, for example task_arithmetic; an unknown name is answered with all that there are."""
    preset: Preset = "paper"
    """`paper` follows the publication, `mergekit` reproduces that tool."""
    options: dict[str, OptionValue] = {}
    """Single options that differ from the preset."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in OPERATORS:
            raise ValueError(f"expected an operator, one of {', '.join(OPERATORS)}; got {self.name!r}")
        legal = OPERATORS[self.name].options
        for option, value in self.options.items():
            if option not in legal:
                raise ValueError(f"{self.name} has the options {sorted(legal) or 'none'}; got {option!r}")
            if value not in legal[option]:
                raise ValueError(
                    f"option {option!r} of {self.name} must be one of {list(legal[option])}; got {value!r}"
                )
        return self


class GeneRange(Strict):
    """A searched operator parameter."""

    low: Finite | None = None
    """Smallest value; the operator's own default range if left out."""
    high: Finite | None = None
    """Largest value."""
    start: Finite | None = None
    """Where the search starts; the operator's default if left out."""
    knots: Annotated[int, Field(ge=1)] | Literal["layer"] | None = None
    """Knots of this parameter over depth; the space's own number if left out."""
    edges: Literal["own", "first"] = "own"
    """Embeddings and output head: `own` genes, or the value of the `first` layer (in the first group)."""


Groups = dict[Name, tuple[Literal["attention", "mlp", "norm"], ...]]


class ParameterSpaceConfig(Strict):
    """Parameter space: one operator with coefficients over layer x module group x expert.

    Each searched parameter has `knots` genes per module group and expert, interpolated linearly over depth, and genes
    of its own for embeddings and output head (unless `edges` says otherwise).
    """

    kind: Literal["parameter"]
    operator: OperatorConfig
    knots: Annotated[int, Field(ge=1)] | Literal["layer"] = 4
    """Genes over depth: 1 = one value for the whole depth, `layer` = one per layer."""
    groups: Annotated[Groups, Field(min_length=1)] = {"block": ("attention", "mlp", "norm")}
    """Which modules of a layer share genes."""
    genes: Annotated[dict[str, GeneRange], Field(min_length=1)]
    """Searched parameters, by name."""
    fixed: dict[str, Finite] = {}
    """Parameters with one fixed value, by name; what is named nowhere keeps the operator's default."""
    per_expert: dict[str, dict[Name, Finite]] = {}
    """Parameters with one fixed value for each expert, by name and expert."""
    start_from: tuple[Coefficient, ...] = ()
    """Where the search starts, instead of each gene's `start`: coefficients found elsewhere, as a CSV, JSON or YAML
    file, or the list itself. Every layer and expert must be there; embeddings and head may be left out."""

    @field_validator("groups")
    @classmethod
    def _partition(cls, groups: Groups) -> Groups:
        members = [role for roles in groups.values() for role in roles]
        if sorted(members) != ["attention", "mlp", "norm"]:
            raise ValueError(f"every module of attention, mlp, norm must stand in exactly one group; got {groups}")
        return groups

    @model_validator(mode="after")
    def _fits_operator(self) -> Self:
        operator = OPERATORS[self.operator.name]
        named = [*self.genes, *self.fixed, *self.per_expert]
        for name in named:
            if name not in operator.parameters:
                raise ValueError(f"{operator.name} has the parameters {sorted(operator.parameters)}; got {name!r}")
        if twice := sorted(name for name in set(named) if named.count(name) > 1):
            raise ValueError(f"a parameter is either searched (genes) or fixed (fixed, per_expert); got {twice} twice")
        for name, gene in self.genes.items():
            low, high = self.bounds(name)
            legal = operator.parameters[name]
            if not legal.minimum <= low < high <= legal.maximum:
                raise ValueError(
                    f"{name}: expected {legal.minimum} <= low < high <= {legal.maximum}; got low {low}, high {high}"
                )
            if gene.start is not None and not low <= gene.start <= high:
                raise ValueError(f"{name}: start must lie in [{low}, {high}]; got {gene.start}")
        for name in self.per_expert:
            if operator.parameters[name].scope == "shared":
                raise ValueError(f"{name} is shared by all experts; write its one value under fixed")
        pairs = [*self.fixed.items(), *((name, value) for name, by in self.per_expert.items() for value in by.values())]
        for name, value in pairs:
            legal = operator.parameters[name]
            if not legal.minimum <= value <= legal.maximum:
                raise ValueError(f"{name}: expected a value in [{legal.minimum}, {legal.maximum}]; got {value}")
        return self

    @model_validator(mode="after")
    def _starts_from_what_is_searched(self) -> Self:
        for name in dict.fromkeys(coefficient.parameter for coefficient in self.start_from):
            if name not in self.genes:
                raise ValueError(f"start_from: expected values of searched parameters {[*self.genes]}; got {name!r}")
        return self

    def bounds(self, name: str) -> tuple[float, float]:
        """Search range of one searched parameter: the user's, or the operator's own."""
        parameter, gene = OPERATORS[self.operator.name].parameters[name], self.genes[name]
        low = parameter.low if gene.low is None else gene.low
        high = parameter.high if gene.high is None else gene.high
        return low, high
