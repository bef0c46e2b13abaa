"""`Recipe`: what to merge, fully explicit.

A recipe names models of a pool, never files, and holds every number that the merge uses. Two recipes with equal
digests give equal weights from the same pool. Knows nothing of tensors, genomes or scores.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from evomerge.recipe.operators import OPERATORS
from evomerge.recipe.schema import Operator, OptionValue, Preset

__all__ = ["DEPTH_ROLES", "EDGE_ROLES", "ROLES", "Field", "OutputDtype", "Recipe", "Role", "options_of", "uniform"]

Role = Literal["attention", "mlp", "norm", "embed", "head"]
ROLES: tuple[Role, ...] = get_args(Role)
DEPTH_ROLES: tuple[Role, ...] = ("attention", "mlp", "norm")
"""Roles inside a layer; `norm` also takes whatever else a layer holds."""
EDGE_ROLES: tuple[Role, ...] = ("embed", "head")
"""Roles outside the layers; `head` is the output projection and the final norm."""

OutputDtype = Literal["bfloat16", "float16", "float32"]

_DECIMALS = 6
"""Coefficients are kept to 1e-6: far below what bf16 weights can tell apart (their step is 4e-3)."""


def _canonical(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a recipe holds finite numbers; got {value}")
    return round(float(value), _DECIMALS) + 0.0  # + 0.0 turns -0.0 into 0.0


@dataclass(frozen=True, slots=True)
class Field:
    """One operator parameter over depth and module role.

    Attributes:
        rows: for each role in the order of `ROLES`, its values `[depth][source]`. Depth is the number of layers for
            `DEPTH_ROLES` and 1 for `EDGE_ROLES`; the inner length is 1 for parameters shared by all sources.

    Raises:
        ValueError: a role without values, ragged rows, or a number that is not finite.
    """

    rows: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        if len(self.rows) != len(ROLES):
            raise ValueError(f"a field has {len(ROLES)} roles {ROLES}; got {len(self.rows)}")
        widths = {len(row) for role in self.rows for row in role}
        depths = {len(self.rows[ROLES.index(role)]) for role in DEPTH_ROLES}
        if len(widths) != 1 or 0 in widths or len(depths) != 1 or 0 in depths:
            raise ValueError(f"a field needs equal depths and widths, at least 1; got depths {depths}, widths {widths}")
        if any(len(self.rows[ROLES.index(role)]) != 1 for role in EDGE_ROLES):
            raise ValueError(f"roles {EDGE_ROLES} lie outside the layers and have one row each")
        canonical = tuple(tuple(tuple(_canonical(v) for v in row) for row in role) for role in self.rows)
        object.__setattr__(self, "rows", canonical)

    @classmethod
    def constant(cls, values: Sequence[float], layers: int) -> Field:
        """The same values, one per source, at every depth and role."""
        row = tuple(values)
        return cls(tuple((row,) * (layers if role in DEPTH_ROLES else 1) for role in ROLES))

    @classmethod
    def of(cls, by_role: Mapping[Role, Sequence[Sequence[float]]]) -> Field:
        """From a mapping role -> `[depth][source]`; every role must be there."""
        missing = [role for role in ROLES if role not in by_role]
        if missing:
            raise ValueError(f"a field needs every role; missing {missing}")
        return cls(tuple(tuple(tuple(row) for row in by_role[role]) for role in ROLES))

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.rows[0])

    @property
    def width(self) -> int:
        """Number of sources; 1 for shared parameters."""
        return len(self.rows[0][0])

    def at(self, role: Role, layer: int | None) -> tuple[float, ...]:
        """Values for one tensor, one per source.

        Args:
            role: the tensor's module role.
            layer: its layer, counted from 0; None (or anything, for edge roles) outside the layers.
        """
        rows = self.rows[ROLES.index(role)]
        return rows[layer or 0] if role in DEPTH_ROLES else rows[0]

    def by_role(self) -> Iterator[tuple[Role, tuple[tuple[float, ...], ...]]]:
        """Pairs of role and its rows `[depth][source]`."""
        return zip(ROLES, self.rows, strict=True)


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
        parameters: every parameter of the operator, sorted by name.
        mask_seed: seed of random masks; 0 for operators without any.
        dtype: dtype of the merged weights.

    Raises:
        ValueError: anything that does not fit the operator.
    """

    operator: str
    options: tuple[tuple[str, OptionValue], ...]
    base: str | None
    sources: tuple[str, ...]
    parameters: tuple[tuple[str, Field], ...]
    mask_seed: int = 0
    dtype: OutputDtype

    def __post_init__(self) -> None:
        operator = OPERATORS.get(self.operator)
        if operator is None:
            raise ValueError(f"operator must be one of {sorted(OPERATORS)}; got {self.operator!r}")
        self._check_models(operator)
        self._check_parameters(operator)
        if dict(self.options).keys() != operator.options.keys() or list(self.options) != sorted(self.options):
            raise ValueError(f"{self.operator}: options must be exactly {sorted(operator.options)}; got {self.options}")
        for name, value in self.options:
            if value not in operator.options[name]:
                raise ValueError(f"{self.operator}: {name} must be one of {operator.options[name]}; got {value!r}")
        if self.dtype not in get_args(OutputDtype):
            raise ValueError(f"dtype must be one of {get_args(OutputDtype)}; got {self.dtype!r}")
        if self.mask_seed and not operator.random:
            object.__setattr__(self, "mask_seed", 0)

    def _check_models(self, operator: Operator) -> None:
        if not self.sources or len(set(self.sources)) != len(self.sources):
            raise ValueError(f"{self.operator}: sources must be distinct and at least one; got {self.sources}")
        if operator.max_sources is not None and len(self.sources) > operator.max_sources:
            most = f"the base with {operator.max_sources} other" if operator.needs_base else f"{operator.max_sources}"
            raise ValueError(f"{self.operator} merges {most} model(s) at most; got {self.sources}")
        if operator.needs_base and (self.base is None or self.base in self.sources):
            raise ValueError(f"{self.operator} needs a base that is not a source; got base {self.base!r}")
        if not operator.needs_base and self.base is not None:
            raise ValueError(f"{self.operator} takes no base; name it among the sources to include it")

    def _check_parameters(self, operator: Operator) -> None:
        names = [name for name, _ in self.parameters]
        if names != sorted(operator.parameters):
            raise ValueError(f"{self.operator}: parameters must be {sorted(operator.parameters)}; got {names}")
        if len({field.layers for _, field in self.parameters}) != 1:
            raise ValueError(f"{self.operator}: all parameters must have the same number of layers")
        for name, field in self.parameters:
            parameter = operator.parameters[name]
            width = len(self.sources) if parameter.scope == "source" else 1
            if field.width != width:
                raise ValueError(f"{self.operator}: {name} needs {width} value(s) per row; got {field.width}")
            values = [v for _, rows in field.by_role() for row in rows for v in row]
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
        """Number of layers of the merged model."""
        return self.parameters[0][1].layers

    @property
    def models(self) -> tuple[str, ...]:
        """Every pool name that the recipe reads: base first, then the sources."""
        return ((self.base,) if self.base is not None else ()) + self.sources

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON; `Recipe.from_data` is the inverse."""
        return {
            "operator": self.operator,
            "options": dict(self.options),
            "base": self.base,
            "sources": list(self.sources),
            "parameters": {
                name: {role: [list(row) for row in rows] for role, rows in field.by_role()}
                for name, field in self.parameters
            },
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
            parameters=tuple(
                (name, Field.of(cast("Mapping[Role, Sequence[Sequence[float]]]", rows)))
                for name, rows in sorted(data["parameters"].items())
            ),
            mask_seed=data["mask_seed"],
            dtype=data["dtype"],
        )

    def canonical(self) -> str:
        """The one JSON text of this recipe: keys sorted, no spaces."""
        return json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits; equal digests mean equal weights from the same pool."""
        return hashlib.blake2b(self.canonical().encode(), digest_size=16).hexdigest()


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
