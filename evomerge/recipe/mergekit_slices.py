"""A path through unmerged layers as the slices of another tool, and back: mergekit 0.1.5's `passthrough`.

There, embeddings come from the first slice's model, last norm and output head from the last one's; slices of no layers
say so where a path begins or ends elsewhere. Knows nothing of other methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.recipe.field import DEPTH_ROLES, ROLES, Field, Role
from evomerge.recipe.mergekit_settings import Settings
from evomerge.recipe.recipe import OutputDtype, Recipe, uniform
from evomerge.recipe.route import Hop, runs_of

__all__ = ["Slice", "Source", "is_range", "path_reasons", "recipe_of", "slices_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One model of a slice, by its path as written; an adapter is `BASE+ADAPTER`."""

    model: str
    settings: Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Layers `[start, stop)` of every source; a stop of None is behind the last layer."""

    start: int
    stop: int | None
    sources: tuple[Source, ...]
    settings: Settings


def is_range(layers: Any) -> bool:
    """Whether this is `[START, END]`, which may hold no layers."""
    whole = isinstance(layers, list) and len(layers) == 2 and all(type(layer) is int for layer in layers)
    return whole and 0 <= layers[0] <= layers[1]


def path_reasons(recipe: Recipe) -> list[str]:
    """Why slices cannot say what a recipe's path does, one line each; empty if they can, or if there is no path."""
    if not recipe.path:
        return []
    reasons = {
        "path through layers of a merge: it routes layers or merges them": None in _models_of(recipe),
        "scales of the residual stream: it has none": any(hop.scale != 1.0 for hop in recipe.path),
    }
    return [reason for reason, holds in reasons.items() if holds]


def slices_of(recipe: Recipe, paths: Mapping[str, str]) -> list[dict[str, Any]]:
    """The slices of a path that has no `path_reasons`.

    Args:
        recipe: whose path counts.
        paths: for each of the recipe's models, its folder or hub name.
    """
    first, *models, last = (model or "" for model in _models_of(recipe))
    hops = [replace(hop, source=model) for hop, model in zip(recipe.path, models, strict=True)]
    runs = [(run.source or "", run.start, run.stop) for run in runs_of(hops)]
    before = [(first, 0, 0)] if first != models[0] else []
    behind = [(last, 0, 0)] if last != models[-1] else []
    runs = [*before, *runs, *behind]
    return [{"sources": [{"model": paths[model], "layer_range": [start, stop]}]} for model, start, stop in runs]


def recipe_of(slices: Sequence[Slice], names: Mapping[str, str], *, layers: int, dtype: OutputDtype) -> Recipe:
    """The recipe of slices of one model each.

    Args:
        slices: in order of depth; those of no layers count as first and last.
        names: for each path of a model, its name in the pool.
        layers: of each model.
        dtype: of the merged weights.

    Raises:
        ValueError: no layers, or one that the models lack.
    """
    runs = [(names[part.sources[0].model], part.start, layers if part.stop is None else part.stop) for part in slices]
    ends = tuple(dict.fromkeys((runs[0][0], runs[-1][0])))
    path = [
        Hop(source=None if ends == (source,) else source, layer=layer)
        for source, start, stop in runs
        for layer in range(start, stop)
    ]
    if not path:
        raise ValueError("expected at least one layer; got none")
    rows = {role: tuple(float(name == ends[-1 if role == "head" else 0]) for name in ends) for role in ROLES}
    depth = {role: layers if role in DEPTH_ROLES else 1 for role in ROLES}
    weight = Field.of({role: [rows[role]] * depth[role] for role in ROLES})
    return replace(uniform(ends, layers=layers, dtype=dtype), parameters=(("weight", weight),), path=tuple(path))


def _models_of(recipe: Recipe) -> list[str | None]:
    """Where embeddings, each layer of the path, and head come from; None where that is a merge of models."""
    own = {hop.layer: _copied(recipe, *((role, hop.layer) for role in DEPTH_ROLES)) for hop in recipe.path}
    layers = [hop.source or own[hop.layer] for hop in recipe.path]
    return [_copied(recipe, ("embed", None)), *layers, _copied(recipe, ("head", None))]


def _copied(recipe: Recipe, *places: tuple[Role, int | None]) -> str | None:
    """The one model that the recipe's merge is at some places; None if it is a merge there."""
    if recipe.operator != "linear" or recipe.variants != recipe.sources:
        return None
    rows = {recipe.parameter("weight").at(role, layer) for role, layer in places}
    kept = [(source, weight) for row in rows for source, weight in zip(recipe.sources, row, strict=True) if weight]
    whole = len(kept) == len(rows) == 1 and (recipe.option("normalize") or kept[0][1] == 1.0)
    return kept[0][0] if whole else None
