"""The oracle of the spherical operators and checkpoint averages: their formulas on whole vectors, in fp64.

Works on the vectors themselves, never on their scalar products, and slice by slice. The rules for degenerate vectors
stand in `evomerge.merging.gram_operators`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations, product
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

    Merge = Callable[[Recipe, ModelPool, TensorSpec], torch.Tensor]

__all__ = ["GRAM_REFERENCES"]


def _slerp(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    (t,) = recipe.parameter("t").at(spec.role, spec.layer)
    a, b = (pool.tensor(model, spec.name).double() for model in recipe.merged)
    return _arc(t, a, b, 0.9995)


def _nuslerp(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    weights = recipe.parameter("weight").at(spec.role, spec.layer)
    vectors = _vectors(recipe, pool, spec)
    if len(vectors) == 1:
        return vectors[0]
    t = weights[1] / sum(weights) if abs(sum(weights)) >= 1e-6 else 0.5
    merged = torch.empty(spec.shape, dtype=torch.float64)
    for where in _slices(recipe, spec):
        merged[where] = _arc(t, vectors[0][where], vectors[1][where], math.sqrt(1 - 2.0**-24))
    return merged


def _multislerp(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    weights = _normalized(recipe, spec)
    vectors = _vectors(recipe, pool, spec)
    mean = sum((w * _unit(v) for w, v in zip(weights, vectors, strict=True)), torch.zeros(spec.shape).double())
    if mean.norm() < 1e-6:
        return torch.as_tensor(sum(w * v for w, v in zip(weights, vectors, strict=True)))
    return torch.as_tensor(_unit(mean) * sum(w * float(v.norm()) for w, v in zip(weights, vectors, strict=True)))


def _karcher(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    vectors = _vectors(recipe, pool, spec)
    weights = _normalized(recipe, spec)
    length = sum(w * float(v.norm()) for w, v in zip(weights, vectors, strict=True))
    directed = [(w, _unit(v)) for w, v in zip(weights, vectors, strict=True) if v.norm() > 1e-8]
    if not directed:
        return torch.zeros(spec.shape).double()
    total = sum(w for w, _ in directed)
    directed = [(w / (total if abs(total) >= 1e-8 else 1.0), u) for w, u in directed]
    mean = torch.as_tensor(sum(w * u for w, u in directed))
    mean = _unit(mean if mean.norm() >= 1e-5 else directed[0][1])
    for _ in range(10):
        step = torch.zeros(spec.shape).double()
        for weight, unit in directed:
            cosine = float((mean * unit).sum().clamp(-1, 1))
            angle = math.acos(cosine)
            if 1e-5 <= angle <= math.pi - 1e-5:
                step += weight * angle / math.sin(angle) * (unit - cosine * mean)
        if step.norm() < 1e-5:
            break
        mean = _unit(math.cos(step.norm()) * mean + math.sin(step.norm()) * step / step.norm())
    return mean * length


def _model_stock(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    vectors = _vectors(recipe, pool, spec)
    merged = torch.stack(vectors).mean(0)
    for where in _slices(recipe, spec):
        merged[where] *= _stock_ratio([vector[where] for vector in vectors], floor=bool(recipe.option("floor")))
    return merged


def _stock_ratio(vectors: list[torch.Tensor], *, floor: bool) -> float:
    if len(vectors) == 1:
        return 1.0
    cosines = []
    for a, b in combinations(vectors, 2):
        scale = float(a.norm() * b.norm())
        scale = max(scale, 1e-6) if floor else scale if scale > 1e-16 else 1.0
        cosines.append(min(max(float((a * b).sum()) / scale, -1.0), 1.0))
    mean = sum(cosines) / len(cosines)
    below = 1 + (len(vectors) - 1) * mean
    return len(vectors) * mean / below if abs(below) >= 1e-6 else 0.0


def _metagpt(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    floats = [other for other in pool.specs if pool.tensor(pool.base, other.name).is_floating_point()]
    counted = floats if recipe.option("per") == "model" else [spec]
    squares = torch.zeros(len(recipe.sources)).double()
    for other in counted:
        squares += torch.stack([vector.square().sum() for vector in _vectors(recipe, pool, other)])
    weights = squares / squares.sum() if squares.any() else squares
    return torch.as_tensor(sum(w * v for w, v in zip(weights, _vectors(recipe, pool, spec), strict=True)))


def _on_base(merge: Merge) -> Merge:
    """The same on task vectors, added to the base."""

    def merged(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
        (scale,) = recipe.parameter("lambda").at(spec.role, spec.layer)
        return pool.tensor(str(recipe.base), spec.name).double() + scale * merge(recipe, pool, spec)

    return merged


def _metric_average(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    (power,) = recipe.parameter("power").at(spec.role, spec.layer)
    metrics = recipe.parameter("metric").at(spec.role, spec.layer)
    largest = max(metrics, key=lambda metric: metric if power > 0 else 1 / metric)
    shares = [(metric / largest) ** power for metric in metrics]
    return _average(recipe, pool, spec, [share / sum(shares) for share in shares])


def _decay_average(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    (power,) = recipe.parameter("power").at(spec.role, spec.layer)
    count = len(recipe.sources)
    rates = [1 - (k / count) ** power for k in range(count + 1)]
    return _average(recipe, pool, spec, [rates[k] - rates[k + 1] for k in range(count)])


def _average(recipe: Recipe, pool: ModelPool, spec: TensorSpec, weights: list[float]) -> torch.Tensor:
    kept = [round(weight, 6) for weight in weights]
    thetas = [pool.tensor(source, spec.name).double() for source in recipe.sources]
    return torch.as_tensor(sum(w * theta for w, theta in zip(kept, thetas, strict=True)) / sum(kept))


def _vectors(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> list[torch.Tensor]:
    """The sources' weights or, if the recipe has a base, their differences from it, which are fp32 by definition."""
    thetas = [pool.tensor(source, spec.name) for source in recipe.sources]
    if recipe.base is None:
        return [theta.double() for theta in thetas]
    base = pool.tensor(recipe.base, spec.name).float()
    return [(theta.float() - base).double() for theta in thetas]


def _slices(recipe: Recipe, spec: TensorSpec) -> Iterator[tuple[int | slice, ...]]:
    """Indices of everything that has an angle of its own."""
    per, places = recipe.option("per"), [range(size) for size in spec.shape]
    if per == "tensor" or len(spec.shape) < 2:
        yield ()
    elif per == "row":
        yield from product(*places[:-1])
    else:
        yield from product([slice(None)], *places[1:])


def _arc(t: float, a: torch.Tensor, b: torch.Tensor, collinear: float) -> torch.Tensor:
    cosine = (_unit(a) * _unit(b)).sum().clamp(-1, 1)
    if abs(cosine) > collinear:
        return (1 - t) * a + t * b
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm() if vector.norm() > 1e-8 else torch.zeros_like(vector)


def _normalized(recipe: Recipe, spec: TensorSpec) -> list[float]:
    weights = recipe.parameter("weight").at(spec.role, spec.layer)
    return [weight / (sum(weights) if abs(sum(weights)) >= 1e-8 else 1.0) for weight in weights]


GRAM_REFERENCES: Mapping[str, Merge] = MappingProxyType(
    {
        "slerp": _slerp,
        "nuslerp": _nuslerp,
        "nuslerp_delta": _on_base(_nuslerp),
        "multislerp": _multislerp,
        "multislerp_delta": _on_base(_multislerp),
        "karcher": _karcher,
        "karcher_delta": _on_base(_karcher),
        "model_stock": _on_base(_model_stock),
        "metagpt": _on_base(_metagpt),
        "metric_average": _metric_average,
        "decay_average": _decay_average,
    }
)
"""The merge of one tensor, by operator; fp64 in the tensor's shape."""
