"""`Recipe`: what to merge, fully explicit.

A recipe names models of a pool, never files, and holds every number that the merge uses. Two recipes with equal
digests give equal weights from the same pool. Knows nothing of tensors, genomes or scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from evomerge.recipe.field import Field, Role
from evomerge.recipe.operators import OPERATORS
from evomerge.recipe.route import Hop, canonical_path
from evomerge.recipe.schema import Operator, OptionValue, Preset
from evomerge.recipe.transform_table import NONE, Need, needed_by, transform_of, variant_name

__all__ = ["OutputDtype", "Recipe", "Space", "options_of", "uniform"]

OutputDtype = Literal["bfloat16", "float16", "float32"]

Space = Literal["weights", "core"]
"""Where an operator works: on the weights, or in the space that low-rank changes span (see `merging.core`)."""


def options_of(operator: Operator, preset: Preset, **changed: OptionValue) -> tuple[tuple[str, OptionValue], ...]:
    """Every option of an operator, spelled out and sorted: the preset's values, then the changes.

    Raises:
        ValueError: an option that the operator does not have, or a value that it does not take.
    """
    options = dict(operator.presets[preset])
    for name, value in changed.items():
        if name not in operator.options or value not in operator.options[name]:
            legal = {key: list(values) for key, values in operator.options.items()}
            raise ValueError(f"operator {operator.name!r} takes the options {legal}; got {name}={value!r}")
        options[name] = value
    return tuple(sorted(options.items()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What to merge, and how, with nothing left to a default.

    Attributes:
        operator: a name in `OPERATORS`.
        options: every option of the operator, sorted by name (see `options_of`).
        base: pool name of the base model; None for operators that need none.
        sources: pool names of the models that are merged, in fixed order (sums run in this order).
        transforms: what is done to each source's task vector before, `none` for most; left out, `none` for all.
        space: `core` for LoRA adapters whose changes are merged in the coordinates that they share.
        parameters: every parameter of the operator, and those modifiers that are not at their defaults throughout,
            sorted by name; rounded to the places that each is kept to.
        path: which layer runs at each depth of the merged model; empty for the merge's own layers in order. What lies
            outside the layers (embeddings, last norm, output head) is the merge's.
        mask_seed: seed of random masks; 0 for operators without any.
        dtype: dtype of the merged weights.

    Raises:
        ValueError: anything that does not fit the operator.
    """

    operator: str
    options: tuple[tuple[str, OptionValue], ...]
    base: str | None
    sources: tuple[str, ...]
    transforms: tuple[str, ...] = ()
    space: Space = "weights"
    parameters: tuple[tuple[str, Field], ...]
    path: tuple[Hop, ...] = ()
    mask_seed: int = 0
    dtype: OutputDtype
    _digest: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        operator = OPERATORS.get(self.operator)
        if operator is None:
            raise ValueError(f"operator must be one of {sorted(OPERATORS)}; got {self.operator!r}")
        parameters = (_canonical(operator, *pair) for pair in self.parameters)
        object.__setattr__(self, "parameters", tuple(pair for pair in parameters if not _is_idle(operator, *pair)))
        self._check_models(operator)
        self._check_transforms(operator)
        self._check_space(operator)
        self._check_parameters(operator)
        object.__setattr__(self, "path", canonical_path(self.path, self.layers))
        if dict(self.options).keys() != operator.options.keys() or list(self.options) != sorted(self.options):
            raise ValueError(f"{self.operator}: options must be exactly {sorted(operator.options)}; got {self.options}")
        for name, value in self.options:
            if value not in operator.options[name]:
                raise ValueError(f"{self.operator}: {name} must be one of {operator.options[name]}; got {value!r}")
        if self.dtype not in get_args(OutputDtype):
            raise ValueError(f"dtype must be one of {get_args(OutputDtype)}; got {self.dtype!r}")
        if type(self.mask_seed) is not int or self.mask_seed < 0:
            raise ValueError(f"mask_seed must be a whole number from 0 on; got {self.mask_seed!r}")
        if self.mask_seed and not operator.random:
            object.__setattr__(self, "mask_seed", 0)

    def _check_models(self, operator: Operator) -> None:
        if not all(isinstance(name, str) and name for name in self.models):
            raise ValueError(f"{self.operator}: models are called by names; got {self.models}")
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ValueError(f"{self.operator}: sources must be distinct and at least one; got {self.sources}")
        if operator.max_sources is not None and len(self.sources) > operator.max_sources:
            most = f"the base with {operator.max_sources} other" if operator.needs_base else f"{operator.max_sources}"
            raise ValueError(f"{self.operator} merges {most} model(s) at most; got {self.sources}")
        if operator.needs_base and (self.base is None or self.base in self.sources):
            raise ValueError(f"{self.operator} needs a base that is not a source; got base {self.base!r}")
        if not operator.needs_base and self.base is not None:
            raise ValueError(f"{self.operator} takes no base; name it among the sources to include it")

    def _check_transforms(self, operator: Operator) -> None:
        transforms = self.transforms or (NONE,) * len(self.sources)
        if len(transforms) != len(self.sources):
            raise ValueError(f"{self.operator}: expected one transform for each of {self.sources}; got {transforms}")
        transforms = tuple(transform_of(transform)[1] for transform in transforms)
        if not operator.needs_base and any(transform != NONE for transform in transforms):
            raise ValueError(
                f"{self.operator} merges weights; transforms work on task vectors, which only an operator with a base "
                f"adds up; got {transforms}; choose another operator, or '{NONE}'"
            )
        object.__setattr__(self, "transforms", transforms)

    def _check_space(self, operator: Operator) -> None:
        if self.space not in get_args(Space):
            raise ValueError(f"space must be one of {get_args(Space)}; got {self.space!r}")
        if self.space == "core" and not operator.core:
            raise ValueError(
                f"{self.operator} reads weights; core space has task vectors only; choose another operator"
            )
        if self.space == "core" and any(transform != NONE for transform in self.transforms):
            raise ValueError(f"core space takes adapters as they are; got transforms {self.transforms}; leave them out")

    def _check_parameters(self, operator: Operator) -> None:
        names = [name for name, _ in self.parameters]
        expected = sorted({*operator.parameters, *operator.modifiers.keys() & names})
        if names != expected:
            raise ValueError(f"{self.operator}: parameters must be {expected}; got {names}")
        if len({field.layers for _, field in self.parameters}) != 1:
            raise ValueError(f"{self.operator}: all parameters must have the same number of layers")
        for name, over in self.parameters:
            parameter = operator.adjustable[name]
            width = len(self.sources) if parameter.scope == "source" else 1
            if over.width != width:
                raise ValueError(f"{self.operator}: {name} needs {width} value(s) per row; got {over.width}")
            values = [v for _, rows in over.by_role() for row in rows for v in row]
            if min(values) < parameter.minimum or max(values) > parameter.maximum:
                raise ValueError(
                    f"{self.operator}: {name} must lie in [{parameter.minimum}, {parameter.maximum}]; "
                    f"got [{min(values)}, {max(values)}]"
                )

    def parameter(self, name: str) -> Field:
        """One parameter by name."""
        return dict(self.parameters)[name]

    def option(self, name: str) -> OptionValue:
        """One option by name."""
        return dict(self.options)[name]

    @property
    def layers(self) -> int:
        """Number of layers of each model that is merged."""
        return self.parameters[0][1].layers

    @property
    def depth(self) -> int:
        """Number of layers of the merged model."""
        return len(self.path) or self.layers

    @property
    def merged(self) -> tuple[str, ...]:
        """Pool names of what is merged: base first, then the sources."""
        return ((self.base,) if self.base is not None else ()) + self.sources

    @property
    def models(self) -> tuple[str, ...]:
        """Every pool name that the recipe reads: what is merged, then what its path visits beside."""
        return tuple(dict.fromkeys((*self.merged, *(hop.source for hop in self.path if hop.source is not None))))

    @property
    def variants(self) -> tuple[str, ...]:
        """Pool names of what is merged: each source, or its variant where it is transformed."""
        return tuple(map(variant_name, self.sources, self.transforms))

    @property
    def needs(self) -> frozenset[Need]:
        """What must be known of the models, beside their weights."""
        return needed_by(self.transforms, damps="omega" in dict(self.parameters))

    def on_variants(self) -> Recipe:
        """The same merge with variants as its sources, and no transforms: what operators work on."""
        return self if self.variants == self.sources else replace(self, sources=self.variants, transforms=())

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON; `Recipe.from_data` is the inverse."""
        transformed = any(transform != NONE for transform in self.transforms)
        return {
            "operator": self.operator,
            "options": dict(self.options),
            "base": self.base,
            "sources": list(self.sources),
            **({"transforms": list(self.transforms)} if transformed else {}),
            **({"space": self.space} if self.space != "weights" else {}),
            "parameters": {
                name: {role: [list(row) for row in rows] for role, rows in field.by_role()}
                for name, field in self.parameters
            },
            **({"path": [hop.to_data() for hop in self.path]} if self.path else {}),
            "mask_seed": self.mask_seed,
            "dtype": self.dtype,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_data`.

        Raises:
            ValueError: data that is no recipe.
        """
        return cls(
            operator=data["operator"],
            options=tuple(sorted(data["options"].items())),
            base=data["base"],
            sources=tuple(data["sources"]),
            transforms=tuple(data.get("transforms", ())),
            space=data.get("space", "weights"),
            parameters=tuple(
                (name, Field.of(cast("Mapping[Role, Sequence[Sequence[float]]]", rows)))
                for name, rows in sorted(data["parameters"].items())
            ),
            path=tuple(Hop(source=source, layer=layer, scale=scale) for source, layer, scale in data.get("path", ())),
            mask_seed=data["mask_seed"],
            dtype=data["dtype"],
        )

    def canonical(self) -> str:
        """The one JSON text of this recipe: keys sorted, no spaces."""
        return json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits; equal digests mean equal weights from the same pool."""
        if not self._digest:  # asked for many times, and dear
            object.__setattr__(self, "_digest", hashlib.blake2b(self.canonical().encode(), digest_size=16).hexdigest())
        return self._digest


def _canonical(operator: Operator, name: str, field: Field) -> tuple[str, Field]:
    """A parameter with the places that it is kept to, so that equal merges have equal texts."""
    return name, field.rounded(operator.adjustable[name].decimals) if name in operator.adjustable else field


def _is_idle(operator: Operator, name: str, field: Field) -> bool:
    """Whether this is a modifier that changes nothing."""
    default = operator.modifiers[name].default if name in operator.modifiers else None
    return default is not None and all(v == default for _, rows in field.by_role() for row in rows for v in row)


def uniform(models: Sequence[str], *, layers: int, dtype: OutputDtype) -> Recipe:
    """The uniform average of some models; with one model, that model itself."""
    return Recipe(
        operator="linear",
        options=options_of(OPERATORS["linear"], "paper"),
        base=None,
        sources=tuple(models),
        parameters=(("weight", Field.constant([1.0] * len(models), layers)),),
        dtype=dtype,
    )
