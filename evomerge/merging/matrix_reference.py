"""The oracle of operators that need whole matrices, and of core space: singular value decompositions in fp64.

Which singular values count as zero is told in `evomerge.merging.matrices`, what core space is in
`evomerge.merging.core`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from evomerge.merging.lora import Adapter
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

    Merge = Callable[[Recipe, ModelPool, TensorSpec], torch.Tensor]

__all__ = ["in_core_space", "iso_c"]


def iso_c(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    """Iso-C of one tensor: fp64 in its shape."""
    weights = recipe.parameter("weight").at(spec.role, spec.layer)
    (scale,) = recipe.parameter("lambda").at(spec.role, spec.layer)
    base = pool.tensor(str(recipe.base), spec.name)
    changes = [(pool.tensor(source, spec.name).float() - base.float()).double() for source in recipe.sources]
    change = sum((w * x for w, x in zip(weights, changes, strict=True)), torch.zeros(spec.shape).double())
    if spec.role in {"embed", "head"} or len(spec.shape) not in (2, 3):
        return base.double() + scale * change / len(weights)
    for place in product(*map(range, spec.shape[:-2])):
        change[place] = _flat(change[place], base[place].double(), sum(map(abs, weights)))
    return base.double() + scale * change


def _flat(change: torch.Tensor, base: torch.Tensor, weights: float) -> torch.Tensor:
    u, s, v = torch.linalg.svd(change, full_matrices=False)
    noise = base.norm() * weights * (1 / math.sqrt(base.shape[0]) + 1 / math.sqrt(base.shape[1]))
    counts = s > 2**-23 * max(float(change.norm()), float(noise))
    return torch.as_tensor((u[:, counts] @ v[counts]) * s[counts].sum() / len(s))


def in_core_space(recipe: Recipe, pool: ModelPool, merge: Merge) -> Iterator[tuple[str, torch.Tensor]]:
    """Merge adapters in core space, under the operator of a recipe."""
    adapters = {source: cast("Adapter", pool.models[source]) for source in recipe.sources}
    bases, tensors, specs = {}, {}, []
    for spec in pool.specs:
        members = [source for source in recipe.sources if spec.name in adapters[source].factors]
        if any(spec.name in adapter.whole for adapter in adapters.values()):
            specs.append(spec)
            tensors.update({(model, spec.name): pool.tensor(model, spec.name) for model in recipe.merged})
        elif members:
            sides = [tuple(side.double() for side in adapters[source].sides(spec.name)) for source in members]
            u, v = (
                _left(torch.cat([left for left, _ in sides], 1)),
                _left(torch.cat([right.T for _, right in sides], 1)),
            )
            specs.append(replace(spec, shape=(u.shape[1], v.shape[1]), dtype="float32"))
            bases[spec.name] = (u, v)
            tensors.update({(model, spec.name): torch.zeros(specs[-1].shape) for model in recipe.merged})
            for source, (left, right) in zip(members, sides, strict=True):
                scale = adapters[source].factors[spec.name].scale
                tensors[source, spec.name] = (scale * u.T @ left @ right @ v).float()
    seen = SimpleNamespace(specs=specs, base=pool.base, tensor=lambda model, name: tensors[model, name])
    merged = {spec.name: merge(recipe, cast("ModelPool", seen), spec).reshape(spec.shape) for spec in specs}
    for spec in pool.specs:
        base = pool.tensor(pool.base, spec.name).double()
        if spec.name in bases:
            u, v = bases[spec.name]
            yield spec.name, base + u @ merged[spec.name] @ v.T
        else:
            yield spec.name, merged.get(spec.name, base)


def _left(factors: torch.Tensor) -> torch.Tensor:
    """Left singular vectors of what is not zero."""
    u, s, _ = torch.linalg.svd(factors, full_matrices=False)
    return torch.as_tensor(u[:, s > max(factors.shape) * 2**-52 * s[0]])
