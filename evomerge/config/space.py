"""What a user may write about a search space. Knows nothing of genomes or models on disk."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Finite, Name, Strict
from evomerge.config.coefficients import Coefficient
from evomerge.config.faults import near
from evomerge.config.registry import Registered
from evomerge.recipe import OPERATORS, OptionValue, Preset, Space
from evomerge.recipe.transform_table import NONE, TRANSFORMS, Need, needed_by, transform_of

__all__ = ["GeneRange", "OperatorConfig", "ParameterSpaceConfig", "SpaceConfig"]


def _choices(name: str, values: Any, kinds: type | tuple[type, ...]) -> tuple[Any, ...]:
    """A list of choices, each once."""
    if not isinstance(values, list | tuple) or not values or not all(isinstance(value, kinds) for value in values):
        raise ValueError(f"{name}: expected a list of one choice or more; got {values!r}")
    if len(set(values)) != len(values):
        raise ValueError(f"{name}: expected each choice once; got {[*values]}")
    return tuple(values)


def _transforms(name: str, values: Any) -> tuple[str, ...]:
    """A list of transforms in their one spelling."""
    return _choices(name, [_spelled(value) for value in _choices(name, values, str)], str)


def _spelled(transform: str) -> str:
    name = transform.partition(":")[0]
    if name not in TRANSFORMS:
        raise ValueError(f"expected one of {', '.join(TRANSFORMS)}; got {transform!r}{near(name, TRANSFORMS)}")
    return transform_of(transform)[1]


class OperatorConfig(Strict):
    """Which merge operator, and its options."""

    name: str
    """A merge operator, for example task_arithmetic; an unknown name is answered with all that there are."""
    preset: Preset = "paper"
    """`paper` follows the publication, `mergekit` reproduces that tool."""
    options: dict[str, OptionValue | tuple[OptionValue, ...]] = {}
    """Single options that differ from the preset: a value, or a list of values to search among."""
    space: Space = "weights"
    """`core` merges LoRA adapters in the coordinates that their changes share, instead of weight by weight."""

    @field_validator("options", mode="before")
    @classmethod
    def _values_or_lists(cls, options: Any) -> Any:
        """One fault for a bad value, where a union of types would have one for each."""
        if not isinstance(options, dict):
            return options
        kinds = (str, bool)
        return {
            name: value if isinstance(value, kinds) else _choices(name, value, kinds) for name, value in options.items()
        }

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in OPERATORS:
            known = ", ".join(OPERATORS)
            raise ValueError(f"expected an operator, one of {known}; got {self.name!r}{near(self.name, OPERATORS)}")
        if self.space == "core" and not OPERATORS[self.name].core:
            fitting = ", ".join(name for name, operator in OPERATORS.items() if operator.core)
            raise ValueError(f"space core takes an operator on task vectors alone, one of {fitting}; got {self.name}")
        legal = OPERATORS[self.name].options
        for option in self.options:
            if option not in legal:
                raise ValueError(f"{self.name} has the options {sorted(legal) or 'none'}; got {option!r}")
            for value in self.choices(option):
                if value not in legal[option]:
                    raise ValueError(
                        f"option {option!r} of {self.name} must be one of {list(legal[option])}; got {value!r}"
                    )
        return self

    def choices(self, option: str) -> tuple[OptionValue, ...]:
        """What one option may be: the user's choices, or the preset's one value."""
        value = self.options.get(option, OPERATORS[self.name].presets[self.preset][option])
        return value if isinstance(value, tuple) else (value,)


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


class SpaceConfig(Registered):
    """What all search spaces have in common.

    Builders get the configuration, the `evomerge.spaces.Models` and the run's seed, and give an
    `evomerge.spaces.SearchSpace`.
    """

    crosses: ClassVar[bool] = False
    """Whether its genomes have children: the space is an `evomerge.spaces.Breeding`."""
    needs_products: ClassVar[bool] = False
    """Whether it asks for the scalar products of the models' weights (`evomerge.spaces.Models.products`)."""

    @property
    def operators(self) -> tuple[OperatorConfig, ...]:
        """Merge operators that its recipes use; empty where they do no more than copy and average."""
        return ()

    @property
    def every_transform(self) -> tuple[str, ...]:
        """Each transform that a recipe of this space may hold, `none` aside."""
        return ()

    @property
    def statistics(self) -> frozenset[Need]:
        """What must be known of the models, beside their weights, to merge the recipes of this space."""
        return frozenset()


Groups = dict[Name, tuple[Literal["attention", "mlp", "norm"], ...]]


@SpaceConfig.register("evomerge.spaces.parameter:build")
class ParameterSpaceConfig(SpaceConfig):
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
    transforms: tuple[str, ...] | dict[Name, tuple[str, ...]] = (NONE,)
    """What may be done to the experts' task vectors before they are merged, for all experts or by expert, for example
    `[none, star:40]`. Of several, the search chooses one for each expert."""
    start_from: tuple[Coefficient, ...] = ()
    """Where the search starts, instead of each gene's `start`: coefficients found elsewhere, as a CSV, JSON or YAML
    file, or the list itself. Every layer and expert must be there; embeddings and head may be left out."""

    @field_validator("transforms", mode="before")
    @classmethod
    def _lists_of_transforms(cls, transforms: Any) -> Any:
        """As for options."""
        if isinstance(transforms, dict):
            return {name: _transforms(str(name), values) for name, values in transforms.items()}
        return _transforms("all experts", transforms)

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
            if name not in operator.adjustable:
                raise ValueError(f"{operator.name} has the parameters {sorted(operator.adjustable)}; got {name!r}")
        if twice := sorted(name for name in set(named) if named.count(name) > 1):
            raise ValueError(f"a parameter is either searched (genes) or fixed (fixed, per_expert); got {twice} twice")
        for name, gene in self.genes.items():
            low, high = self.bounds(name)
            legal = operator.adjustable[name]
            if not legal.minimum <= low < high <= legal.maximum:
                raise ValueError(
                    f"{name}: expected {legal.minimum} <= low < high <= {legal.maximum}; got low {low}, high {high}"
                )
            if gene.start is not None and not low <= gene.start <= high:
                raise ValueError(f"{name}: start must lie in [{low}, {high}]; got {gene.start}")
        for name in self.per_expert:
            if operator.adjustable[name].scope == "shared":
                raise ValueError(f"{name} is shared by all experts; write its one value under fixed")
        pairs = [*self.fixed.items(), *((name, value) for name, by in self.per_expert.items() for value in by.values())]
        for name, value in pairs:
            legal = operator.adjustable[name]
            if not legal.minimum <= value <= legal.maximum:
                raise ValueError(f"{name}: expected a value in [{legal.minimum}, {legal.maximum}]; got {value}")
        return self

    @model_validator(mode="after")
    def _transforms_task_vectors(self) -> Self:
        if self.every_transform and not OPERATORS[self.operator.name].needs_base:
            raise ValueError(
                f"transforms: {self.operator.name} merges weights; transforms work on task vectors, which only an "
                f"operator with a base adds up; got {', '.join(self.every_transform)}; choose another operator"
            )
        if self.every_transform and self.operator.space == "core":
            raise ValueError(
                f"transforms: core space takes adapters as they are; got {', '.join(self.every_transform)}; "
                "leave them out"
            )
        return self

    @model_validator(mode="after")
    def _starts_from_what_is_searched(self) -> Self:
        for name in dict.fromkeys(coefficient.parameter for coefficient in self.start_from):
            if name not in self.genes:
                raise ValueError(f"start_from: expected values of searched parameters {[*self.genes]}; got {name!r}")
        return self

    def transforms_of(self, expert: str) -> tuple[str, ...]:
        """What may be done to one expert."""
        return self.transforms.get(expert, (NONE,)) if isinstance(self.transforms, dict) else self.transforms

    @property
    def operators(self) -> tuple[OperatorConfig, ...]:
        """Its one operator."""
        return (self.operator,)

    @property
    def every_transform(self) -> tuple[str, ...]:
        """See `SpaceConfig.every_transform`."""
        lists = self.transforms.values() if isinstance(self.transforms, dict) else (self.transforms,)
        return tuple(dict.fromkeys(name for names in lists for name in names if name != NONE))

    @property
    def statistics(self) -> frozenset[Need]:
        """See `SpaceConfig.statistics`."""
        damps = "omega" in self.genes or self.fixed.get("omega", 1.0) != 1.0
        return needed_by(self.every_transform, damps=damps)

    def bounds(self, name: str) -> tuple[float, float]:
        """Search range of one searched parameter: the user's, or the operator's own."""
        parameter, gene = OPERATORS[self.operator.name].adjustable[name], self.genes[name]
        low = parameter.low if gene.low is None else gene.low
        high = parameter.high if gene.high is None else gene.high
        return low, high
