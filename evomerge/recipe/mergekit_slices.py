"""A path through unmerged layers as the slices of another tool: mergekit 0.1.5's `passthrough`.

There, embeddings come from the first slice's model, last norm and output head from the last one's; slices of no layers
say so where a path begins or ends elsewhere. Knows nothing of other methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.recipe.recipe import Recipe
from evomerge.recipe.route import runs_of

__all__ = ["path_reasons", "slices_of"]


def path_reasons(recipe: Recipe) -> list[str]:
    """Why slices cannot say what a recipe's path does, one line each; empty if they can, or if there is no path."""
    if not recipe.path:
        return []
    reasons = {
        "path through layers of a merge: it routes layers or merges them": _only_model(recipe) is None,
        "scales of the residual stream: it has none": any(hop.scale != 1.0 for hop in recipe.path),
    }
    return [reason for reason, holds in reasons.items() if holds]


def slices_of(recipe: Recipe, paths: Mapping[str, str]) -> list[dict[str, Any]]:
    """The slices of a path that has no `path_reasons`.

    Args:
        recipe: whose path counts.
        paths: for each of the recipe's models, its folder or hub name.
    """
    outside = _only_model(recipe) or ""
    hops = [hop if hop.source else replace(hop, source=outside) for hop in recipe.path]
    runs = [(run.source or "", run.start, run.stop) for run in runs_of(hops)]
    ends = [(outside, 0, 0)]
    runs = [*(ends if runs[0][0] != outside else []), *runs, *(ends if runs[-1][0] != outside else [])]
    return [{"sources": [{"model": paths[model], "layer_range": [start, stop]}]} for model, start, stop in runs]


def _only_model(recipe: Recipe) -> str | None:
    """The model that the recipe's merge is; None if it is a merge."""
    if recipe.operator != "linear" or len(recipe.sources) != 1 or recipe.variants != recipe.sources:
        return None
    weights = [row[0] for _, rows in recipe.parameter("weight").by_role() for row in rows]
    whole = all(weights) if recipe.option("normalize") else all(weight == 1.0 for weight in weights)
    return recipe.sources[0] if whole else None
