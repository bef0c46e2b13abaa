"""The oracle of WIDEN: straight from its formula in fp64, input by input, with nothing shared with its lowering.

Slow and obvious on purpose. The rules stand in `evomerge.merging.widen`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from evomerge.merging.layout import stores_inputs_first

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

__all__ = ["widen"]


def widen(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    """One tensor, fp64 in its shape."""
    (scale,), weights = (recipe.parameter(name).at(spec.role, spec.layer) for name in ("lambda", "weight"))
    stored = pool.tensor(str(recipe.base), spec.name)
    thetas = [pool.tensor(source, spec.name) for source in recipe.sources]
    changes = [(theta.float() - stored.float()).double() for theta in thetas]
    inputs = [_by_input(theta, spec, pool) for theta in (stored, *thetas)]
    if len(spec.shape) < 2:
        scores = _scores([change.abs().reshape(-1).tolist() for change in changes], recipe, spec, 1)
    else:
        lengths = [_ranks([_turned(w, w0)[0] for w, w0 in zip(x, inputs[0], strict=True)]) for x in inputs[1:]]
        turns = [_ranks([_turned(w, w0)[1] for w, w0 in zip(x, inputs[0], strict=True)]) for x in inputs[1:]]
        n = len(inputs[0])
        scores = (_scores(lengths, recipe, spec, n) + _scores(turns, recipe, spec, n)) / 2
    merged = stored.double()
    for weight, change, row in zip(weights, changes, scores, strict=True):
        scaled = _by_input(change, spec, pool) * row[:, None]
        merged = merged + scale * weight * _stored(scaled, spec, pool)
    return merged


def _by_input(values: torch.Tensor, spec: TensorSpec, pool: ModelPool) -> torch.Tensor:
    """As `[inputs, weights of each]`."""
    if len(spec.shape) < 2:
        return values.double().reshape(-1, 1)
    rows = values.double().reshape(-1, spec.shape[-1])
    return rows if _in_rows(spec, pool) else rows.T


def _stored(values: torch.Tensor, spec: TensorSpec, pool: ModelPool) -> torch.Tensor:
    straight = len(spec.shape) < 2 or _in_rows(spec, pool)
    return (values if straight else values.T).reshape(spec.shape)


def _in_rows(spec: TensorSpec, pool: ModelPool) -> bool:
    first = stores_inputs_first(spec.name, 2, str(pool.config.get("model_type")))
    return len(spec.shape) > 2 or spec.role == "embed" or first


def _turned(w: torch.Tensor, base: torch.Tensor) -> tuple[float, float]:
    """How much the weights of one input changed in length and in direction."""
    (long, old), product = (float(v @ v) for v in (w, base)), float(w @ base)
    cosine = product / math.sqrt(long * old) if long * old > 0 else float(long == old)
    return round(abs(math.sqrt(long) - math.sqrt(old)), 12), round(1 - cosine, 12)


def _ranks(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda j: (values[j], j))
    return [float(order.index(j)) for j in range(len(values))]


def _scores(significance: list[list[float]], recipe: Recipe, spec: TensorSpec, unit: int) -> torch.Tensor:
    (t,), (s,) = (recipe.parameter(name).at(spec.role, spec.layer) for name in ("t", "s"))
    scores = (torch.tensor(significance, dtype=torch.float64) / unit).softmax(0)
    for row, values in zip(scores, significance, strict=True):
        cut = t * (math.fsum(values) / len(values))
        for j, value in enumerate(values):
            if value > cut:
                row[j] = s
    return scores
