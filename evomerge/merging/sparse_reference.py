"""The oracle of operators that trim, drop or select, in fp64, with nothing shared with plans or executors.

Slow and obvious on purpose. What decides is fp32 by definition: differences, ballots, variances and importances; so are
DELLA's rescaled differences. Where the literature leaves room, the rules stand in `evomerge.merging.sparse_operators`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from evomerge.merging import masks

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

    Sparsified = tuple[torch.Tensor, float]

__all__ = ["SPARSE_REFERENCES", "difference", "is_nothing", "sparsified"]


_FLOATS = frozenset({"bfloat16", "float16", "float32", "float64"})


def difference(recipe: Recipe, pool: ModelPool, source: str, name: str) -> torch.Tensor:
    """One source's `x`, formed in fp32, as fp64, flattened."""
    base = pool.tensor(str(recipe.base), name).float()
    return (pool.tensor(source, name).float() - base).double().reshape(-1)


def is_nothing(recipe: Recipe, density: float) -> bool:
    """Whether a density is finer than random masks are."""
    return _SPARSIFY.get(recipe.operator) in (_dropped, _pruned) and density < masks.FINEST


def sparsified(recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, density: float) -> Sparsified:
    """What TIES, DARE, Breadcrumbs or DELLA keep of one source's `x`, and what it is still to be multiplied with."""
    if density == 1:
        return difference(recipe, pool, source, spec.name), 1.0
    return _SPARSIFY[recipe.operator](recipe, pool, spec, source, density)


def _trimmed(recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, density: float) -> Sparsified:
    x = difference(recipe, pool, source, spec.name)
    if recipe.option("trim") == "tensor":
        return _largest(x, 0, max(1, int(density * len(x)))), 1.0
    names = [spec.name for spec in pool.specs if spec.dtype in _FLOATS]
    everything = torch.cat([difference(recipe, pool, source, name) for name in names])
    threshold = everything.abs().sort(descending=True).values[max(1, int(density * len(everything))) - 1]
    return torch.where(x.abs() >= threshold, x, 0.0), 1.0


def _dropped(recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, density: float) -> Sparsified:
    x = difference(recipe, pool, source, spec.name)
    mask = masks.uniform(masks.tensor_seed(recipe.mask_seed, source, spec.name), 0, len(x)) < density
    kept = torch.where(mask, x, 0.0)
    match recipe.option("rescale"):
        case "inverse":
            return kept, 1 / density
        case "l1":
            return kept, _restored(x, kept)
        case _:
            return kept, 1.0


def _banded(recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, density: float) -> Sparsified:
    x = difference(recipe, pool, source, spec.name)
    gamma = recipe.parameter("gamma").at(spec.role, spec.layer)[recipe.sources.index(source)]
    kept = int(density * len(x))
    return _largest(x, min(int(gamma * len(x)), len(x) - kept), kept), 1.0


def _pruned(recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, density: float) -> Sparsified:
    x = difference(recipe, pool, source, spec.name)
    epsilon = recipe.parameter("epsilon").at(spec.role, spec.layer)[recipe.sources.index(source)]
    epsilon = masks.window(min(epsilon, density, 1 - density))
    columns = len(x) if recipe.option("rank") == "tensor" or not spec.shape else spec.shape[-1]
    levels = _bin_levels(x) if recipe.option("rank") == "tensor" else _row_levels(x.view(-1, columns))
    q = masks.limit(density) - epsilon + 2 * epsilon * levels / 255
    mask = masks.uniform(masks.tensor_seed(recipe.mask_seed, source, spec.name), 0, len(x)) < q
    kept = torch.where(mask, x, 0.0)
    match recipe.option("rescale"):
        case "inverse":
            return torch.where(mask, kept.float() * (1 / q).float(), 0.0).double(), 1.0
        case "l1":
            return kept, _restored(x, kept)
        case _:
            return kept, 1.0


def _restored(x: torch.Tensor, kept: torch.Tensor) -> float:
    before, after = float(x.abs().sum()), float(kept.abs().sum())
    return before / after if min(before, after) >= 1e-7 else 1.0


def _largest(x: torch.Tensor, skip: int, count: int) -> torch.Tensor:
    order = torch.sort(x.abs(), descending=True, stable=True).indices[skip : skip + count]
    return torch.zeros_like(x).scatter(0, order, x[order])


def _row_levels(x: torch.Tensor) -> torch.Tensor:
    rows, columns = x.shape
    order = torch.sort(x.abs(), descending=True, stable=True, dim=1).indices
    place = torch.zeros_like(order)
    for row in range(rows):
        place[row, order[row]] = torch.arange(columns)
    if columns == 1:
        return torch.full((rows,), 255.0).double()
    return (255 * (columns - 1 - place).double() / (columns - 1) + 0.5).floor().reshape(-1)


def _bin_levels(x: torch.Tensor) -> torch.Tensor:
    bins = x.abs().float().view(torch.int32) >> 16
    _, which, held = torch.unique(bins, return_inverse=True, return_counts=True)
    middle = held.cumsum(0).double() - held.double() / 2
    return torch.floor(256 * middle / len(x))[which]


def _rows(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    return torch.stack([difference(recipe, pool, source, spec.name) for source in recipe.sources])


def _parameter(recipe: Recipe, name: str, spec: TensorSpec) -> torch.Tensor:
    return torch.tensor(recipe.parameter(name).at(spec.role, spec.layer), dtype=torch.float64)


def _total(rows: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total


def _consensus(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    x, weights = _rows(recipe, pool, spec), _parameter(recipe, "weight", spec)[:, None]
    ballots = weights.float() * x.float()
    others = (_total(ballots) - ballots).abs()
    matter = ballots.abs() > _parameter(recipe, "lambda_t", spec)[:, None].float() * others
    mask = matter.sum(0) >= _parameter(recipe, "k", spec)
    return _parameter(recipe, "lambda", spec) * mask * (weights * x).sum(0)


def _magmax(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    x, weights = _rows(recipe, pool, spec), _parameter(recipe, "weight", spec)[:, None]
    return _parameter(recipe, "lambda", spec) * _first_highest((weights.float() * x.float()).abs(), weights * x)


def _exclusive(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    x, weights = _rows(recipe, pool, spec), _parameter(recipe, "weight", spec)[:, None]
    densities = recipe.parameter("density").at(spec.role, spec.layer)
    levels = torch.stack([_bin_levels(row) for row in x])
    counts = [min(max(1, int(density * x.shape[1])), x.shape[1]) if density > 0 else 0 for density in densities]
    kept = torch.stack([_largest(row, 0, count) for row, count in zip(x, counts, strict=True)])
    scores = torch.where(weights.float() * kept.float() != 0, levels, -1.0)
    return _parameter(recipe, "lambda", spec) * _first_highest(scores, weights * kept)


def _first_highest(scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    highest, value = scores[0], values[0]
    for score, other in zip(scores[1:], values[1:], strict=True):
        value = torch.where(score > highest, other, value)
        highest = torch.maximum(score, highest)
    return value


def _sce(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    x, floor = _rows(recipe, pool, spec), 1e-6 if recipe.option("floor") else 0.0
    (topk,) = _parameter(recipe, "select_topk", spec).float()
    if topk < 1:
        spread = _variance(x.float()).double()
        count = int(spread.count_nonzero().float() * topk)
        x = x * (_largest(spread, 0, count) > 0)
    energies = x.square().mean(1)
    weights = energies / energies.sum() if energies.sum() > floor else torch.full_like(energies, 1 / len(x))
    majority = torch.where(_total(x.float()) >= 0, 1, -1)
    agree = (x.sign() == majority).double() * weights[:, None]
    divisor = _total(agree.float()).double().clamp(min=floor)
    return (agree * x).sum(0) / torch.where(divisor == 0, 1.0, divisor)


def _variance(x: torch.Tensor) -> torch.Tensor:
    shifted = x - x[0]
    squares = (shifted - _total(shifted) / len(x)).square()
    return _total(squares) / len(x)


def _ram(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    x = _rows(recipe, pool, spec)
    active = x.float().abs() > _parameter(recipe, "epsilon", spec).float()
    alone, several = active & (active.sum(0) == 1), active & (active.sum(0) > 1)
    gains = torch.ones(len(x), 1).double()
    if recipe.operator == "ram_plus":
        r, alpha = (_parameter(recipe, name, spec) for name in ("r", "alpha"))
        gains = (1 + r * (several.sum(1) / alone.sum(1).clamp(min=1)).minimum(alpha))[:, None]
    return (alone * gains * x).sum(0) + (several * x).sum(0) / active.sum(0).clamp(min=1)


def _nearswap(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    (x,), t = _rows(recipe, pool, spec), _parameter(recipe, "t", spec)
    return torch.where(x == 0, 0.0, x * (t / x.abs()).clamp(max=1))


def _fusion(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
    (x,), (fence,) = _rows(recipe, pool, spec), _parameter(recipe, "fence", spec)
    columns = spec.shape[-1] if spec.shape else 1
    models = (*recipe.sources, str(recipe.base))
    p, q = (pool.tensor(model, spec.name).double().reshape(-1, columns).softmax(1) for model in models)
    divergence = (p * (p.log() - q.log())).sum(1).clamp(min=0)
    importance = x.abs().float() * divergence.float().repeat_interleave(columns)
    ordered = importance.sort().values.double()
    low, median, high = (float(ordered[int(share * (len(x) - 1))]) for share in (0.25, 0.5, 0.75))
    return torch.where(importance >= torch.tensor(median + float(fence) * (high - low)).float(), x, 0.0)


_SPARSIFY: Mapping[str, Callable[[Recipe, ModelPool, TensorSpec, str, float], Sparsified]] = MappingProxyType(
    {
        "ties": _trimmed,
        "dare_linear": _dropped,
        "dare_ties": _dropped,
        "breadcrumbs": _banded,
        "breadcrumbs_ties": _banded,
        "della_linear": _pruned,
        "della": _pruned,
    }
)


def _on_the_base(
    change: Callable[[Recipe, ModelPool, TensorSpec], torch.Tensor],
) -> Callable[[Recipe, ModelPool, TensorSpec], torch.Tensor]:
    def merged(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> torch.Tensor:
        return pool.tensor(str(recipe.base), spec.name).double().reshape(-1) + change(recipe, pool, spec)

    return merged


SPARSE_REFERENCES: Mapping[str, Callable[[Recipe, ModelPool, TensorSpec], torch.Tensor]] = MappingProxyType(
    {
        "consensus": _on_the_base(_consensus),
        "magmax": _on_the_base(_magmax),
        "exclusive": _on_the_base(_exclusive),
        "sce": _on_the_base(_sce),
        "ram": _on_the_base(_ram),
        "ram_plus": _on_the_base(_ram),
        "nearswap": _on_the_base(_nearswap),
        "fusion": _on_the_base(_fusion),
    }
)
"""By operator: fp64, of any shape with the right number of elements."""
