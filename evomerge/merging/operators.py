"""From recipe to plan: what every merge operator means, tensor by tensor.

Each function below lowers one operator to the kernels of `evomerge.merging.plan`. Trivial merges become copies, so that
they keep a model's exact bytes. Knows nothing of how kernels are executed.

Legend: `w_k` weight of source k, `x_k = theta_k - theta_0` its task vector, `rho_k` density, `lambda` global scale.

Where the literature leaves room:

* A density of 0 means that the source is absent: it neither votes nor counts in any divisor.
* A divisor whose magnitude is below 1e-8 counts as 1 (linear, task arithmetic, DARE-linear).
* Votes fold the sign of a weight into the task vector. An unweighted vote therefore counts `sign(w_k) x_k`, with
  `sign(0) = +`, so a source of weight 0 still votes; `weighted_mean` then divides by the sum of `|w_k|`, which cannot
  vanish. With a weighted vote it divides by the signed sum, where exactly 0 counts as 1: mergekit's rule.
* Ballots that cancel exactly elect + in a weighted vote (mergekit's rule), and in an unweighted one the sign that most
  elements of that tensor elected (the paper takes the majority over the whole model), + if there is no majority.
* `trim: model` keeps ties at the threshold (paper); `trim: tensor` keeps exactly `max(1, int(rho n))` elements
  (mergekit), of equal ones those that come first. A trimmed mean of one source is that source, trimmed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from evomerge.errors import MergeError
from evomerge.merging import statistics
from evomerge.merging.plan import Copy, Delta, Kernel, Linear, MergePlan, TensorPlan, Term, Vote
from evomerge.merging.sparse import Part, dropped, is_float, trimmed

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

__all__ = ["lower"]

Lowering = Callable[["TensorSpec"], Kernel]
"""The kernel of one tensor, under one recipe."""

_COLLINEAR = 0.9995
"""Cosine beyond which spherical interpolation gives way to linear interpolation."""


def lower(recipe: Recipe, pool: ModelPool) -> MergePlan:
    """Bring a recipe down to numbers.

    Args:
        recipe: what to merge.
        pool: the models that it names. Facts about them (scalar products, order statistics) are computed when first
            needed and kept in memory, so later calls are quick.

    Raises:
        MergeError: the recipe names models that the pool lacks, or has another number of layers.
    """
    _check(recipe, pool)
    lowering = _LOWERINGS[recipe.operator](recipe, pool)
    return MergePlan(tensors=tuple(_tensor(spec, recipe, pool, lowering) for spec in pool.specs))


def _check(recipe: Recipe, pool: ModelPool) -> None:
    missing = sorted(set(recipe.models).difference(pool.names))
    if missing:
        raise MergeError(f"the recipe names the models {missing}; the pool has {list(pool.names)}; rename or add them")
    if recipe.layers != pool.layers:
        raise MergeError(
            f"the recipe has values for {recipe.layers} layers; the models of the pool have {pool.layers}; "
            "decode it again with this pool"
        )


def _tensor(spec: TensorSpec, recipe: Recipe, pool: ModelPool, lowering: Lowering) -> TensorPlan:
    if not is_float(spec):
        return TensorPlan(name=spec.name, shape=spec.shape, dtype=spec.dtype, kernel=Copy(source=pool.base))
    return TensorPlan(name=spec.name, shape=spec.shape, dtype=recipe.dtype, kernel=lowering(spec))


def _linear(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Model soup: `sum w_k theta_k`, divided by `sum w_k` when normalized (Wortsman et al. 2022)."""

    def lowering(spec: TensorSpec) -> Kernel:
        weights = _per_source(recipe, "weight", spec)
        divisor = _divisor(weights) if recipe.option("normalize") else 1.0
        terms = _terms(recipe.sources, weights)
        if len(terms) == 1 and _single(terms[0].weight) == divisor:
            return Copy(source=terms[0].source)
        return Linear(terms=terms, divisor=divisor)

    return lowering


def _task_arithmetic(recipe: Recipe, pool: ModelPool) -> Lowering:
    """`theta_0 + lambda sum w_k x_k` (Ilharco et al. 2023), divided by `sum w_k` when normalized."""

    def lowering(spec: TensorSpec) -> Kernel:
        weights = _per_source(recipe, "weight", spec)
        divisor = _divisor(weights) if recipe.option("normalize") else 1.0
        return _delta(recipe, spec, _terms(recipe.sources, weights), divisor)

    return lowering


def _slerp(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Spherical interpolation from the base (t = 0) to the source (t = 1) (Shoemake 1985), norms left as they are."""
    base, source = recipe.models

    def lowering(spec: TensorSpec) -> Kernel:
        (t,) = recipe.parameter("t").at(spec.role, spec.layer)
        if t in {0.0, 1.0}:
            return Copy(source=source if t else base)
        first, second = _arc(t, statistics.gram(pool, base, source, spec.name))
        return Linear(terms=(Term(source=base, weight=first), Term(source=source, weight=second)), divisor=1.0)

    return lowering


def _arc(t: float, gram: statistics.Gram) -> tuple[float, float]:
    norms = [math.sqrt(square) for square in (gram.aa, gram.bb)]
    scale = math.prod(norm if norm > 1e-8 else 1.0 for norm in norms)
    cosine = min(max(gram.ab / scale, -1.0), 1.0)
    if abs(cosine) > _COLLINEAR:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _ties(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Trim small changes, elect a sign, merge who agrees (Yadav et al. 2023)."""
    parts = trimmed(recipe, pool)
    return lambda spec: _vote(recipe, spec, parts(spec))


def _dare_linear(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Drop changes at random, rescale the others, add (Yu et al. 2024)."""

    def lowering(spec: TensorSpec) -> Kernel:
        parts = dropped(recipe, pool, spec)
        divisor = _divisor([part.weight for part in parts]) if recipe.option("normalize") else 1.0
        return _delta(recipe, spec, [part.term for part in parts], divisor)

    return lowering


def _dare_ties(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Drop changes at random, rescale the others, then elect a sign and merge who agrees (Yu et al. 2024)."""
    return lambda spec: _vote(recipe, spec, dropped(recipe, pool, spec))


def _vote(recipe: Recipe, spec: TensorSpec, parts: Sequence[Part]) -> Kernel:
    weighted = recipe.option("vote") == "weighted"
    if weighted:
        parts = [part for part in parts if part.weight]
    shares = [_share(str(recipe.option("aggregate")), part.weight, weighted=weighted) for part in parts]
    if len(parts) < 2 or not any(part.weight for part in parts):
        return _delta(recipe, spec, [part.term for part in parts], _divisor(shares))
    scale = _scale(recipe, spec)
    if not scale:
        return Copy(source=_base(recipe))
    return Vote(
        base=_base(recipe),
        terms=tuple(part.term if weighted else part.ballot for part in parts),
        gains=tuple(1.0 if weighted else abs(part.weight) for part in parts),
        shares=tuple(shares),
        zero="plus" if weighted else "majority",
        scale=scale,
    )


def _share(aggregate: str, weight: float, *, weighted: bool) -> float:
    if aggregate == "weighted_mean":
        return weight if weighted else abs(weight)
    return 1.0 if aggregate == "mean" else 0.0


def _delta(recipe: Recipe, spec: TensorSpec, terms: Sequence[Term], divisor: float) -> Kernel:
    terms = tuple(term for term in terms if term.weight)
    scale = _scale(recipe, spec)
    if not terms or not scale:
        return Copy(source=_base(recipe))
    if len(terms) == 1 and terms[0].keep is None and _single(terms[0].weight * scale) == divisor:
        return Copy(source=terms[0].source)
    return Delta(base=_base(recipe), terms=terms, divisor=divisor, scale=scale)


def _terms(sources: Sequence[str], weights: Sequence[float]) -> tuple[Term, ...]:
    pairs = zip(sources, weights, strict=True)
    return tuple(Term(source=source, weight=weight) for source, weight in pairs if weight)


def _per_source(recipe: Recipe, name: str, spec: TensorSpec) -> tuple[float, ...]:
    return recipe.parameter(name).at(spec.role, spec.layer)


def _scale(recipe: Recipe, spec: TensorSpec) -> float:
    return recipe.parameter("lambda").at(spec.role, spec.layer)[0]


def _base(recipe: Recipe) -> str:
    return str(recipe.base)


def _divisor(weights: Sequence[float]) -> float:
    """Sum of the weights, accumulated in fp32 as the sums are that it divides."""
    total = np.float32(0)
    for weight in weights:
        total += np.float32(weight)
    return float(total) if abs(total) >= 1e-8 else 1.0


def _single(value: float) -> float:
    return float(np.float32(value))


_LOWERINGS: Mapping[str, Callable[[Recipe, ModelPool], Lowering]] = MappingProxyType(
    {
        "linear": _linear,
        "task_arithmetic": _task_arithmetic,
        "slerp": _slerp,
        "ties": _ties,
        "dare_linear": _dare_linear,
        "dare_ties": _dare_ties,
    }
)
