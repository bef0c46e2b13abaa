"""A mergekit configuration as a recipe: the way in; `mergekit_yaml` is the way out.

What a recipe cannot express is refused by name, all of it at once, with lines. How values reach tensors is mergekit
0.1.5's: a value given with a source goes before one given with its slice, and that before the file's own; a gradient
runs over the layers of its slice, and embeddings, final norm and output head all take its *first* value. Arithmetic is
this package's (fp32 sums, one rounding), whatever the file's `dtype` says. Knows nothing of mergekit's code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from evomerge.errors import ConfigError, Fault
from evomerge.recipe.field import DEPTH_ROLES, ROLES, Field, Role
from evomerge.recipe.mergekit_document import Structure, read_structure
from evomerge.recipe.mergekit_methods import PASSTHROUGH
from evomerge.recipe.mergekit_settings import Settings, value_at
from evomerge.recipe.mergekit_slices import Slice, Source, recipe_of
from evomerge.recipe.mergekit_yaml import NamedTensor
from evomerge.recipe.operators import OPERATORS
from evomerge.recipe.recipe import OutputDtype, Recipe, options_of
from evomerge.recipe.schema import OptionValue
from evomerge.yaml_lines import KeyPath, parse

__all__ = ["MergekitConfig", "read_mergekit"]

Row = tuple[float, ...]
"""One value per source; one in all for shared parameters."""


def read_mergekit(text: str, source: str) -> MergekitConfig:
    """Read a configuration, as far as that goes without its models.

    Args:
        text: the YAML.
        source: what to call it in messages.

    Raises:
        ConfigError: everything in it that is wrong, or that a recipe cannot express.
    """
    structure = read_structure(parse(text, source))
    base = structure.base or structure.sources[0].partition("+")[0]
    written = _pool_names(base, structure.sources)
    chosen = next((name for name, path in written.items() if path == structure.tokenizer), None)
    models = {name: path.rpartition("+")[2] for name, path in written.items()}
    names = {path: name for name, path in written.items()}
    return MergekitConfig(models=models, tokenizer=chosen, _structure=structure, _names=names)


def _pool_names(base: str, sources: Sequence[str]) -> dict[str, str]:
    """Models as written, by pool name: `base`, and the last part of every other path, numbered where two are alike."""
    models = {"base": base}
    for path in sources:
        if path != base:
            folder = path.rpartition("+")[2].rstrip("/").rpartition("/")[2]
            last = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder).lstrip("_.-") or "model"
            alike = [name for name in models if name == last or re.fullmatch(re.escape(last) + r"-\d+", name)]
            models[f"{last}-{len(alike) + 1}" if alike else last] = path
    return models


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class MergekitConfig:
    """A configuration without faults of its own.

    Example:
        >>> text = "{merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b}]}"
        >>> read_mergekit(text, "mergekit.yml").models
        {'base': 'a', 'b': 'b'}

    Attributes:
        models: paths as they stand in the file, by pool name, base first; of `BASE+ADAPTER` that of the adapter.
            Without a `base_model` it is the first model that lends its configuration and tokenizer.
        tokenizer: pool name of the model whose tokenizer and vocabulary the merged model takes; None: all must have the
            same.
    """

    models: Mapping[str, str]
    tokenizer: str | None
    _structure: Structure
    _names: Mapping[str, str]

    def recipe(self, tensors: Iterable[NamedTensor], *, dtype: OutputDtype) -> Recipe:
        """The recipe that the configuration means for models with these tensors.

        Args:
            tensors: every weight of the models (a pool's `specs`).
            dtype: of the merged weights where the file leaves it open.

        Raises:
            ConfigError: slices that are not the whole model or leave it, tensors without a value for a required
                parameter, or different values inside one module of one layer.
        """
        operator, structure = OPERATORS[self._structure.method.operator], self._structure
        if structure.method is PASSTHROUGH:
            return self._routed(1 + max(tensor.layer or 0 for tensor in tensors), structure.dtype or dtype)
        values = _Values(structure, tuple(tensors))
        fields = {name: values.field(name) for name in sorted(operator.parameters)}
        if values.faults:
            raise ConfigError(structure.document.source, values.faults)
        return Recipe(
            operator=operator.name,
            options=options_of(operator, "mergekit", **_options(structure)),
            base=self._names[structure.base] if operator.needs_base and structure.base is not None else None,
            sources=tuple(self._names[path] for path in structure.sources),
            parameters=tuple(fields.items()),
            dtype=structure.dtype or dtype,
        )

    def _routed(self, layers: int, dtype: OutputDtype) -> Recipe:
        try:
            return recipe_of(self._structure.slices, self._names, layers=layers, dtype=dtype)
        except ValueError as error:
            document = self._structure.document
            raise ConfigError(document.source, [document.fault(("slices",), str(error))]) from error


def _options(structure: Structure) -> dict[str, OptionValue]:
    chosen = structure.settings.values
    switches = structure.method.switches.items()
    return {
        option: value
        for name, switch in switches
        for option, value in switch.options[chosen.get(name, switch.default)].items()
    }


class _Values:
    """Every parameter's value at every tensor; what is wrong goes to `faults`."""

    def __init__(self, structure: Structure, tensors: Sequence[NamedTensor]) -> None:
        self._structure = structure
        self._tensors = tensors
        self._layers = 1 + max(tensor.layer or 0 for tensor in tensors)
        self._missing: set[tuple[str, str]] = set()
        self.faults: list[Fault] = []
        last = structure.slices[-1]
        if last.stop not in (None, self._layers):
            self._fault(("slices",), f"expected all {self._layers} layers of the models; got {last.stop}")

    def field(self, name: str) -> Field:
        """One parameter over depth and module role; roles that the models lack take the first tensor's values."""
        cells: dict[tuple[Role, int], dict[Row, str]] = {}
        for tensor in self._tensors:
            held = cells.setdefault((tensor.role, tensor.layer or 0), {})
            held.setdefault(self._row(name, tensor), tensor.name)
        for held in cells.values():
            if len(held) > 1:
                self._refuse_split(name, held)
                break
        rows = {cell: next(iter(held)) for cell, held in cells.items()}
        first = next(iter(rows.values()))
        depth = {role: self._layers if role in DEPTH_ROLES else 1 for role in ROLES}
        return Field.of({role: [rows.get((role, at), first) for at in range(depth[role])] for role in ROLES})

    def _row(self, name: str, tensor: NamedTensor) -> Row:
        place, t = self._place(tensor)
        parameter = OPERATORS[self._structure.method.operator].parameters[name]
        if parameter.scope == "shared":
            return (self._value(name, tensor, t, [place.settings, self._structure.settings], "the merge"),)
        merged = [source for source in place.sources if source.model in self._structure.sources]
        return tuple(self._value(name, tensor, t, self._scopes(place, source), source.model) for source in merged)

    def _scopes(self, place: Slice, source: Source) -> list[Settings]:
        return [source.settings, place.settings, self._structure.settings]

    def _place(self, tensor: NamedTensor) -> tuple[Slice, float]:
        """The slice that a tensor takes its settings from, and its depth inside."""
        slices = self._structure.slices
        if tensor.layer is None:
            return slices[0 if tensor.role == "embed" else -1], 0.0
        place = next((s for s in slices if s.stop is None or tensor.layer < s.stop), slices[-1])
        steps = (self._layers if place.stop is None else place.stop) - place.start - 1
        return place, (tensor.layer - place.start) / steps if steps else 1.0

    def _value(self, name: str, tensor: NamedTensor, t: float, scopes: Sequence[Settings], owner: str) -> float:
        if name in self._structure.method.absent:
            return self._structure.method.absent[name]
        for value in self._found(name, tensor, t, scopes):
            return value
        if name in _REQUIRED and (owner, name) not in self._missing:
            self._missing.add((owner, name))
            self._fault(scopes[0].path, f"{owner}: {name} is required, and nothing gives one to {tensor.name}")
        return OPERATORS[self._structure.method.operator].parameters[name].default or 0.0

    def _found(self, name: str, tensor: NamedTensor, t: float, scopes: Sequence[Settings]) -> Iterator[float]:
        for scope in scopes:
            value = value_at(scope.values[name], tensor.name, t) if name in scope.values else None
            if value is not None:
                yield value

    def _refuse_split(self, name: str, held: Mapping[Row, str]) -> None:
        (one, first), (other, second) = list(held.items())[:2]
        given = f"{first} gets {_told(one)} and {second} {_told(other)}"
        message = f"a recipe has one {name} per layer and module ({', '.join(ROLES)}); here {given}"
        self._fault(("parameters", name), message)

    def _fault(self, path: KeyPath, message: str) -> None:
        self.faults.append(self._structure.document.fault(path, message))


def _told(row: Row) -> str:
    return " ".join(f"{value:g}" for value in row)


_REQUIRED = frozenset({"weight", "t"})
"""What mergekit has no default for; where it has one, the operators have the same."""
