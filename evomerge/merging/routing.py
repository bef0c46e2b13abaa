"""Paths through layers: what a merged model is made of when its layers come from several models, in any number.

A layer that a path visits twice is there twice, each time under the number of its depth, so that the result is a plain
checkpoint of the same architecture. Knows nothing of operators, executors or live models.

Legend: `t` depth in the merged model, counted from 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from operator import mul
from typing import TYPE_CHECKING, Any

from evomerge.errors import MergeError
from evomerge.merging.depth import config_at_depth
from evomerge.merging.folding import Fold, fold_of, model_type_of
from evomerge.merging.layout import at_layer, stacked
from evomerge.merging.plan import Copy, MergePlan, TensorPlan
from evomerge.merging.sparse import is_float

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Hop, OutputDtype, Recipe

__all__ = ["Form", "Placed", "form_of", "merged_specs", "placements", "routed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What a merged model consists of.

    Attributes:
        specs: every weight, sorted by name.
        carried: tensors that it takes from the base as they are.
        config: content of its `config.json`, dtype aside.
    """

    specs: tuple[TensorSpec, ...]
    carried: tuple[TensorSpec, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One tensor of a layer on a path.

    Attributes:
        name: in the merged model.
        spec: of the pool's tensor that it is made from.
        source: the model whose tensor that is; None for the merge's own.
        fold: what it takes of the path's scales.
    """

    name: str
    spec: TensorSpec
    source: str | None
    fold: Fold


def form_of(pool: ModelPool, path: Sequence[Hop]) -> Form:
    """What a path makes of the models' architecture.

    Constants that files keep inside layers are left out: transformers makes them anew.

    Args:
        pool: the models.
        path: of a recipe; empty for the models' own form.

    Raises:
        MergeError: no plain checkpoint of this architecture can be such a model.
    """
    if not path:
        return Form(specs=pool.specs, carried=pool.carried, config=pool.config)
    moved = [
        replace(placed.spec, name=placed.name, layer=t)
        for t, layer in enumerate(placements(pool, path))
        for placed in layer
    ]
    return Form(
        specs=tuple(sorted((*_outside(pool.specs), *moved), key=lambda spec: spec.name)),
        carried=tuple(_outside(pool.carried)),
        config=config_at_depth(pool.config, [hop.layer for hop in path]),
    )


def placements(pool: ModelPool, path: Sequence[Hop]) -> list[list[Placed]]:
    """The tensors of every layer on a path, by depth.

    Raises:
        MergeError: the layers are no single stack, or the architecture does not let scales be folded.
    """
    inside: defaultdict[int, list[TensorSpec]] = defaultdict(list)
    for spec in pool.specs:
        if spec.layer is not None:
            inside[spec.layer].append(spec)
    stacks = sorted({stacked(spec.name)[0] for specs in inside.values() for spec in specs})
    if len(stacks) != 1:
        raise MergeError(
            f"a path through layers: expected models with one stack of layers; got {stacks}; models with an encoder "
            "and a decoder have no paths"
        )
    kind = model_type_of(pool.config)
    totals = accumulate((hop.scale for hop in path), mul)
    return [
        [
            Placed(name=at_layer(spec.name, t), spec=spec, source=hop.source, fold=_fold(spec, total, kind))
            for spec in inside[hop.layer]
        ]
        for t, (hop, total) in enumerate(zip(path, totals, strict=True))
    ]


def merged_specs(pool: ModelPool, path: Sequence[Hop]) -> tuple[TensorSpec, ...]:
    """The pool's tensors that a recipe's own merge is asked for: with a path, those outside the layers and on it."""
    own = {hop.layer for hop in path if hop.source is None}
    return tuple(spec for spec in pool.specs if not path or spec.layer is None or spec.layer in own)


def routed(merged: MergePlan, recipe: Recipe, pool: ModelPool) -> MergePlan:
    """The plan of a recipe with a path.

    Args:
        merged: of the recipe's own merge, at least for `merged_specs`.
        recipe: whose path counts.
        pool: the models that it names.

    Raises:
        MergeError: see `placements`.
    """
    own = {tensor.name: tensor for tensor in merged.tensors}
    tensors = [own[spec.name] for spec in _outside(pool.specs)]
    for placed in chain.from_iterable(placements(pool, recipe.path)):
        spec, fold = placed.spec, placed.fold
        there = own[spec.name] if placed.source is None else _copied(spec, placed.source, recipe.dtype)
        tensors.append(replace(there, name=placed.name, origin=spec.name, gain=fold.gain, shift=fold.shift))
    return MergePlan(tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)))


def _copied(spec: TensorSpec, source: str, dtype: OutputDtype) -> TensorPlan:
    wanted = dtype if is_float(spec) else spec.dtype
    return TensorPlan(name=spec.name, shape=spec.shape, dtype=wanted, kernel=Copy(source=source))


def _outside(specs: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    return (spec for spec in specs if spec.layer is None)


def _fold(spec: TensorSpec, total: float, kind: str) -> Fold:
    return fold_of(spec.name, total, kind) if is_float(spec) else Fold()
