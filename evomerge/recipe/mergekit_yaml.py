"""A recipe as the configuration file of another tool: mergekit 0.1.5.

Replayed there with the same models, the file gives the same weights, except where `inexpressible` says otherwise. Knows
nothing of mergekit's code, only of its file format.

How values reach tensors: mergekit takes, for each parameter, a list of pairs (filter, value); the first filter that is
part of a tensor's name wins, and an entry without a filter takes the rest. Filters here name one layer, or one module
of one layer; embeddings come after all layers, and final norm and head take the rest. (Its gradients would not do: they
give embeddings and head the first layer's value.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import yaml

from evomerge.recipe.averaging import as_linear
from evomerge.recipe.field import Field, Role
from evomerge.recipe.mergekit_methods import METHOD_OF, Switch
from evomerge.recipe.mergekit_slices import path_reasons, slices_of
from evomerge.recipe.operators import OPERATORS
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.transform_table import variant_name

__all__ = ["NamedTensor", "inexpressible", "to_mergekit"]


class NamedTensor(Protocol):
    """A tensor's name, role and layer."""

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""

    @property
    def role(self) -> Role:
        """Its module role."""

    @property
    def layer(self) -> int | None:
        """Its layer, counted from 0; None outside the layers."""


def inexpressible(recipe: Recipe) -> list[str]:
    """What of a recipe mergekit cannot reproduce, one line each; empty if its weights will be the same."""
    recipe = as_linear(recipe)
    routing = path_reasons(recipe)
    return [] if recipe.path and not routing else [*routing, *_inexpressible_merge(recipe)]


def _inexpressible_merge(recipe: Recipe) -> list[str]:
    transformed = [f"{variant}: it has no transforms" for variant in recipe.variants if variant not in recipe.sources]
    if recipe.operator not in METHOD_OF:
        return [*transformed, f"{recipe.operator}: it has no such method"]
    method, options = METHOD_OF[recipe.operator], dict(recipe.options)
    sparse = "density" in OPERATORS[recipe.operator].parameters and not _is_one(recipe.parameter("density"))
    reasons = {
        "trim=model: it trims each tensor on its own": options.get("trim") == "model" and sparse,
        "vote=unweighted: its election weighs task vectors": options.get("vote") == "unweighted",
        "aggregate=mean: it takes weighted means or sums": options.get("aggregate") == "mean",
        "rescale=inverse: it restores the L1 norm instead": options.get("rescale") == "inverse" and sparse,
        "rank=tensor: it ranks the elements of each row": options.get("rank") == "tensor" and sparse,
        "floor=False: it divides by at least 1e-6": options.get("floor") is False,
        f"one model: it takes at least {method.least}": len(recipe.sources) < method.least,
        "omega: it damps nothing": "omega" in dict(recipe.parameters),
        "space=core: it merges weights": recipe.space == "core" and recipe.operator != "task_arithmetic",
        "masks: it draws its own at random": OPERATORS[recipe.operator].random and sparse,
    }
    reasons |= {f"{name}: it has none": _matters(recipe, name, value) for name, value in method.absent.items()}
    return transformed + [reason for reason, holds in reasons.items() if holds]


def to_mergekit(
    recipe: Recipe,
    paths: Mapping[str, str],
    tensors: Iterable[NamedTensor],
    *,
    tokenizer: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The YAML text of a mergekit configuration.

    Starts with a comment for each thing that mergekit cannot reproduce. The path of a transformed model ends with its
    transform, and leads mergekit nowhere: it must not merge the model as it is instead.

    Args:
        recipe: what to merge.
        paths: for each of the recipe's models, its folder or hub name.
        tensors: every weight of the models, for its name (a pool's `specs`).
        tokenizer: the model whose vocabulary the others are brought to; None if all have the same.
        notes: what else mergekit cannot reproduce.

    Raises:
        KeyError: a model without a path.
    """
    recipe, comments = as_linear(recipe), [*inexpressible(recipe), *notes]
    routes = recipe.path and not path_reasons(recipe)
    config = {
        **(_passthrough(recipe, paths) if routes else _merge(recipe, paths, _Filters(tensors))),
        **({} if tokenizer is None else {"tokenizer_source": paths[tokenizer]}),
        "dtype": "float32",
        "out_dtype": recipe.dtype,
    }
    lines = [f"# not reproducible with mergekit: {reason}\n" for reason in comments]
    return "".join(lines) + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _passthrough(recipe: Recipe, paths: Mapping[str, str]) -> dict[str, Any]:
    return {"merge_method": "passthrough", "slices": slices_of(recipe, paths)}


def _merge(recipe: Recipe, paths: Mapping[str, str], filters: _Filters) -> dict[str, Any]:
    """Method, models and parameters of a recipe's own merge."""
    shared: dict[str, Any] = {name: filters.setting(recipe.parameter(name), 0) for name in _names(recipe, "shared")}
    models = [
        {
            "model": variant_name(paths[model], recipe.transforms[source]),
            "parameters": {name: filters.setting(recipe.parameter(name), source) for name in _names(recipe, "source")},
        }
        for source, model in enumerate(recipe.sources)
    ]
    return {
        "merge_method": METHOD_OF[recipe.operator].name if recipe.operator in METHOD_OF else recipe.operator,
        **({} if recipe.base is None else {"base_model": paths[recipe.base]}),
        "models": [{key: value for key, value in model.items() if value} for model in models],
        "parameters": shared | _switches(recipe),
    }


def _is_one(field: Field) -> bool:
    return all(value == 1.0 for _, rows in field.by_role() for row in rows for value in row)


def _matters(recipe: Recipe, name: str, value: float) -> bool:
    """Whether a parameter differs from a fixed value; of one per source, whether it tells the sources apart."""
    rows = [row for _, rows in recipe.parameter(name).by_role() for row in rows]
    if OPERATORS[recipe.operator].parameters[name].scope == "shared":
        return any(row != (value,) for row in rows)
    return any(len(set(row)) > 1 or not row[0] for row in rows)


def _names(recipe: Recipe, scope: str) -> list[str]:
    """Parameters of one scope that mergekit's method has."""
    absent = METHOD_OF[recipe.operator].absent if recipe.operator in METHOD_OF else {}
    parameters = OPERATORS[recipe.operator].parameters
    return [name for name in parameters if parameters[name].scope == scope and name not in absent]


def _switches(recipe: Recipe) -> dict[str, bool]:
    """The recipe's options in mergekit's terms, none left to its defaults, which differ from method to method."""
    if recipe.operator not in METHOD_OF:
        return {}
    return {name: _position(switch, recipe) for name, switch in METHOD_OF[recipe.operator].switches.items()}


def _position(switch: Switch, recipe: Recipe) -> bool:
    """The value of a switch that stands for a recipe's options; its default where neither does."""
    chosen = dict(recipe.options).items()
    fitting = [value for value in (True, False) if value in switch.options and switch.options[value].items() <= chosen]
    return fitting[0] if fitting else switch.default


class _Filters:
    """Parts of names that single out the tensors of one layer and role.

    One filter per module of a layer (`model.layers.3.mlp.`); full names where a module mixes roles.
    """

    def __init__(self, tensors: Iterable[NamedTensor]) -> None:
        self._embeddings: list[str] = []
        self._layers: dict[tuple[str, int], dict[str, list[NamedTensor]]] = {}
        for tensor in tensors:
            if tensor.layer is not None:
                start, _, rest = f".{tensor.name}".partition(f".{tensor.layer}.")
                prefix = f"{start}.{tensor.layer}."[1:]
                modules = self._layers.setdefault((prefix, tensor.layer), {})
                modules.setdefault(f"{prefix}{rest.split('.')[0]}.", []).append(tensor)
            elif tensor.role == "embed":
                self._embeddings.append(tensor.name)

    def setting(self, field: Field, source: int) -> float | list[dict[str, str | float]]:
        """One source's values of a parameter: a number if it is the same everywhere, else pairs of filter and value."""
        pairs = [pair for layer in sorted(self._layers, key=lambda key: key[1]) for pair in self._inside(layer, field)]
        pairs += [(name, field.at("embed", None)) for name in self._embeddings]
        rest = field.at("head", None)[source]
        if all(row[source] == rest for _, row in pairs):
            return rest
        filtered: list[dict[str, str | float]] = [{"filter": part, "value": row[source]} for part, row in pairs]
        return [*filtered, {"value": rest}]

    def _inside(self, layer: tuple[str, int], field: Field) -> list[tuple[str, tuple[float, ...]]]:
        prefix, index = layer
        pairs: list[tuple[str, tuple[float, ...]]] = []
        for module, tensors in self._layers[layer].items():
            roles = {tensor.role for tensor in tensors}
            if len(roles) == 1:
                pairs.append((module, field.at(roles.pop(), index)))
            else:
                pairs += [(tensor.name, field.at(tensor.role, index)) for tensor in tensors]
        return [(prefix, pairs[0][1])] if len({row for _, row in pairs}) == 1 else pairs
