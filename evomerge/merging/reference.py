"""The oracle: every operator straight from its formula, in fp64, with nothing shared with plans or executors.

Slow and obvious on purpose. What decides is fp32 by definition: the differences that are trimmed, the ballots of an
election, and divisors, which are compared with zero. Where the literature leaves room, the rules stand in
`evomerge.merging.operators`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evomerge.merging.calibrated import importance
from evomerge.merging.folding import fold_of, model_type_of
from evomerge.merging.gram_reference import GRAM_REFERENCES
from evomerge.merging.layout import at_layer, stores_inputs_first
from evomerge.merging.matrix_reference import in_core_space, iso_c
from evomerge.merging.sparse_reference import SPARSE_REFERENCES, difference, is_nothing, sparsified
from evomerge.merging.widen_reference import widen

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

__all__ = ["reference_merge"]


def reference_merge(recipe: Recipe, pool: ModelPool) -> Iterator[tuple[str, torch.Tensor]]:
    """Merge without rounding.

    Args:
        recipe: what to merge.
        pool: the models that it names.

    Yields:
        Names, sorted, and fp64 tensors; tensors that hold no floats are as they are stored.
    """
    merged = _unrouted(recipe, pool)
    yield from sorted(_routed(recipe, pool, dict(merged)).items()) if recipe.path else merged


def _routed(recipe: Recipe, pool: ModelPool, merged: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Layer after layer along the path, each scaled by all that the stream was multiplied with before it."""
    found = {spec.name: merged[spec.name] for spec in pool.specs if spec.layer is None}
    total = 1.0
    for depth, hop in enumerate(recipe.path):
        total *= hop.scale
        for spec in pool.specs:
            if spec.layer == hop.layer:
                values = merged[spec.name] if hop.source is None else pool.tensor(hop.source, spec.name)
                fold = fold_of(spec.name, total, model_type_of(pool.config))
                scaled = values.double() * fold.gain + fold.shift if _is_float(spec) else values
                found[at_layer(spec.name, depth)] = scaled
    return found


def _unrouted(recipe: Recipe, pool: ModelPool) -> Iterator[tuple[str, torch.Tensor]]:
    omega = dict(recipe.parameters).get("omega")
    specs = {spec.name: spec for spec in pool.specs}
    for name, values in _undamped(recipe, pool):
        yield name, values if omega is None else _damped(values, recipe, pool, specs[name])


def _damped(merged: torch.Tensor, recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    """`theta_0 + (merged - theta_0) (1 - (1 - omega) s_j)` on input j of a linear map."""
    (omega,) = recipe.parameter("omega").at(spec.role, spec.layer)
    means = importance(pool, spec.name) if _is_float(spec) and omega < 1 else None
    if means is None or not means.any():
        return merged
    base = pool.tensor(str(recipe.base), spec.name).double()
    factors = 1 - (1 - omega) * torch.from_numpy(means / means.max())
    first = stores_inputs_first(spec.name, 2, str(pool.config.get("model_type")))
    return base + (merged - base) * (factors[:, None] if first else factors)


def _undamped(recipe: Recipe, pool: ModelPool) -> Iterator[tuple[str, torch.Tensor]]:
    if recipe.space == "core":
        yield from in_core_space(recipe, pool, _merged)
        return
    recipe = recipe.on_variants()
    for spec in pool.specs:
        if _is_float(spec):
            yield spec.name, _merged(recipe, pool, spec).reshape(spec.shape)
        else:
            yield spec.name, pool.tensor(pool.base, spec.name)


def _merged(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    if special := GRAM_REFERENCES.get(recipe.operator) or SPARSE_REFERENCES.get(recipe.operator):
        return special(recipe, pool, spec)
    if recipe.operator == "iso_c":
        return iso_c(recipe, pool, spec)
    if recipe.operator == "widen":
        return widen(recipe, pool, spec)
    if recipe.operator == "linear":
        return _linear(recipe, pool, spec)
    base = pool.tensor(str(recipe.base), spec.name).double().reshape(-1)
    (scale,) = recipe.parameter("lambda").at(spec.role, spec.layer)
    match recipe.operator:
        case "task_arithmetic" | "dare_linear" | "breadcrumbs" | "della_linear":
            return base + scale * _combined(recipe, pool, spec)
        case _:
            return base + scale * _elected(recipe, pool, spec)


def _linear(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    weights = recipe.parameter("weight").at(spec.role, spec.layer)
    thetas = [pool.tensor(source, spec.name).double() for source in recipe.sources]
    total = sum((w * theta for w, theta in zip(weights, thetas, strict=True)), torch.zeros(spec.shape).double())
    return total / _total(weights) if recipe.option("normalize") else total


def _combined(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    rows = _sparse(recipe, pool, spec)
    total = sum((row.weight * row.rescale * row.x for row in rows), torch.zeros(math.prod(spec.shape)).double())
    return total / _total([row.weight for row in rows]) if recipe.option("normalize") else total


def _elected(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    rows = _sparse(recipe, pool, spec)
    if not rows:
        return torch.zeros(math.prod(spec.shape)).double()
    weighted = recipe.option("vote") == "weighted"
    ballots = torch.stack([_ballot(row, weighted=weighted) for row in rows])
    elected = torch.zeros(ballots.shape[1])
    for ballot in ballots:
        elected = elected + ballot
    elected = elected.sign()
    negative = not weighted and elected.sum() < 0
    elected[elected == 0] = -1.0 if negative else 1.0
    agree = (ballots.sign() == elected).double()
    merged = (agree * torch.stack([row.weight * row.rescale * row.x for row in rows])).sum(0)
    shares = torch.tensor([row.weight if weighted else abs(row.weight) for row in rows])
    return merged / _divisor(str(recipe.option("aggregate")), agree, shares)


def _ballot(row: _Row, *, weighted: bool) -> torch.Tensor:
    score = row.weight if weighted else math.copysign(1.0, row.weight)
    return torch.tensor(score * row.rescale, dtype=torch.float32) * row.x.float()


def _divisor(aggregate: str, agree: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    if aggregate == "sum":
        return torch.ones(agree.shape[1]).double()
    divisor = torch.zeros(agree.shape[1])
    for row, share in zip(agree.float(), shares, strict=True):
        divisor = divisor + row * (1.0 if aggregate == "mean" else share)
    return torch.where(divisor == 0, 1.0, divisor.double())


@dataclass(frozen=True, slots=True)
class _Row:
    """A source that is present: its weight and its sparsified difference, still to be rescaled."""

    weight: float
    x: torch.Tensor
    rescale: float = 1.0


def _sparse(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> list[_Row]:
    weights = recipe.parameter("weight").at(spec.role, spec.layer)
    if recipe.operator == "task_arithmetic":
        pairs = zip(weights, recipe.sources, strict=True)
        return [_Row(weight, difference(recipe, pool, source, spec.name)) for weight, source in pairs]
    densities = recipe.parameter("density").at(spec.role, spec.layer)
    return [
        _Row(weight, *sparsified(recipe, pool, spec, source, density))
        for source, weight, density in zip(recipe.sources, weights, densities, strict=True)
        if density > 0 and not is_nothing(recipe, density)
    ]


def _total(weights: Sequence[float]) -> float:
    if abs(math.fsum(weights)) < 1e-8:
        return 1.0
    total = torch.zeros(())
    for weight in weights:
        total = total + torch.tensor(weight, dtype=torch.float32)
    return float(total) if abs(total) >= 1e-8 else 1.0


def _is_float(spec: TensorSpec) -> bool:
    return spec.dtype in {"bfloat16", "float16", "float32", "float64"}
