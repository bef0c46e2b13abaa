"""The oracle: every operator straight from its formula, in fp64, with nothing shared with plans or executors.

Slow and obvious on purpose. What decides is fp32 by definition: the differences that are trimmed, the ballots of an
election, and divisors, which are compared with zero. Where the literature leaves room, the rules stand in
`evomerge.merging.operators`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evomerge.merging import masks

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
        Names and fp64 tensors in the order of the pool's specs; tensors that hold no floats are the base's.
    """
    for spec in pool.specs:
        if _is_float(spec):
            yield spec.name, _merged(recipe, pool, spec).reshape(spec.shape)
        else:
            yield spec.name, pool.tensor(pool.base, spec.name)


def _merged(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    match recipe.operator:
        case "linear":
            return _linear(recipe, pool, spec)
        case "slerp":
            return _slerp(recipe, pool, spec)
    base = pool.tensor(str(recipe.base), spec.name).double().reshape(-1)
    (scale,) = recipe.parameter("lambda").at(spec.role, spec.layer)
    match recipe.operator:
        case "task_arithmetic" | "dare_linear":
            return base + scale * _combined(recipe, pool, spec)
        case _:
            return base + scale * _elected(recipe, pool, spec)


def _linear(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    weights = recipe.parameter("weight").at(spec.role, spec.layer)
    thetas = [pool.tensor(source, spec.name).double() for source in recipe.sources]
    total = sum((w * theta for w, theta in zip(weights, thetas, strict=True)), torch.zeros(spec.shape).double())
    return total / _total(weights) if recipe.option("normalize") else total


def _slerp(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    (t,) = recipe.parameter("t").at(spec.role, spec.layer)
    a, b = (pool.tensor(model, spec.name).double().reshape(-1) for model in recipe.models)
    units = [v / v.norm() if v.norm() > 1e-8 else v for v in (a, b)]
    cosine = torch.dot(*units).clamp(-1, 1)
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


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
        return [_Row(weight, _difference(recipe, pool, source, spec.name)) for weight, source in pairs]
    densities = recipe.parameter("density").at(spec.role, spec.layer)
    sparsify = _trimmed if recipe.operator == "ties" else _dropped
    return [
        _Row(weight, *sparsify(recipe, pool, spec, source, density))
        for source, weight, density in zip(recipe.sources, weights, densities, strict=True)
        if density > 0
    ]


def _difference(recipe: Recipe, pool: ModelPool, source: str, name: str) -> torch.Tensor:
    base = pool.tensor(str(recipe.base), name).float()
    return (pool.tensor(source, name).float() - base).double().reshape(-1)


def _trimmed(recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, density: float) -> tuple[torch.Tensor]:
    x = _difference(recipe, pool, source, spec.name)
    if density == 1:
        return (x,)
    if recipe.option("trim") == "tensor":
        kept = torch.sort(x.abs(), descending=True, stable=True).indices[: max(1, int(density * len(x)))]
        return (torch.zeros_like(x).scatter(0, kept, x[kept]),)
    everything = torch.cat([_difference(recipe, pool, source, spec.name) for spec in pool.specs if _is_float(spec)])
    threshold = everything.abs().sort(descending=True).values[max(1, int(density * len(everything))) - 1]
    return (torch.where(x.abs() >= threshold, x, 0.0),)


def _dropped(
    recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, density: float
) -> tuple[torch.Tensor, float]:
    x = _difference(recipe, pool, source, spec.name)
    mask = masks.uniform(masks.tensor_seed(recipe.mask_seed, source, spec.name), 0, len(x)) < density
    kept = torch.where(mask, x, 0.0)
    match recipe.option("rescale"):
        case "inverse":
            return kept, 1 / density
        case "l1":
            before, after = float(x.abs().sum()), float(kept.abs().sum())
            return kept, 1.0 if min(before, after) < 1e-7 or density == 1 else before / after
        case _:
            return kept, 1.0


def _total(weights: Sequence[float]) -> float:
    total = torch.zeros(())
    for weight in weights:
        total = total + torch.tensor(weight, dtype=torch.float32)
    return float(total) if abs(total) >= 1e-8 else 1.0


def _is_float(spec: TensorSpec) -> bool:
    return spec.dtype in {"bfloat16", "float16", "float32", "float64"}
