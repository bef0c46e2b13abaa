"""Operators that look at the weights through scalar products only, and are linear once those are known.

Each one turns K x K products (see `evomerge.merging.gram`) into coefficients `c_k`, one per source and slice; the merge
is then `sum c_k v_k`, on top of the base where the vectors `v_k` are task vectors.

Legend: `w_k` weight, `n_k = |v_k|`, `u_k = v_k / n_k`, `C_kl = <u_k, u_l>`; coefficients are `[slices, K]`, products
`[slices, K, K]`.

Where the literature leaves room:

* A vector shorter than 1e-8 has no direction: its cosines are 0, and it pulls no mean.
* Weights that sum to 0 (below 1e-8; NuSLERP: below 1e-6, then t = 1/2) are not divided by their sum.
* One source alone is its own spherical, Karcher and Model Stock mean. Weights at an end of an arc give that source.
* Nearly collinear vectors, opposite ones too, are interpolated linearly: SLERP from |cosine| 0.9995 on, NuSLERP from
  where fp32 cannot tell it from 1 (mergekit's rules).
* Multi-SLERP of directions that cancel (mean below 1e-6) is the weighted sum.
* Weights of a Karcher mean are 0 or more: only then is it the point nearest to all directions. It starts at the
  weighted mean of the directions, or at the first source where that vanishes; directions opposite to the mean pull
  nowhere.
* Model Stock keeps the base where its denominator vanishes (below 1e-6), and its ratio may be negative or above 1.
* MetaGPT of task vectors that are all zero is the base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import numpy as np

from evomerge.merging.factors import Factors
from evomerge.merging.gram import Slicing, gram, run_of
from evomerge.merging.lowering import Lowering, delta, linear, per_source, shared
from evomerge.merging.plan import Kernel, Term
from evomerge.merging.sparse import is_float

if TYPE_CHECKING:
    import numpy.typing as npt

    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

    Array = npt.NDArray[np.float64]
    Coefficients = Callable[[Recipe, TensorSpec, Array], Array]

__all__ = ["GRAM_LOWERINGS"]

_SHORT = 1e-8
"""Length below which a vector has no direction."""

_SLERP_COLLINEAR = 0.9995
_NUSLERP_COLLINEAR = 1.0 - 2.0**-25  # its square is the fp32 below 1

_CANCELLED = 1e-6
"""Length of a mean of unit vectors, or a denominator, that counts as zero."""

_KARCHER_STEPS = 10
_KARCHER_TOLERANCE = 1e-5


def _slerp(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Spherical interpolation from the base (t = 0) to the source (t = 1) (Shoemake 1985), norms left as they are."""

    def lowering(spec: TensorSpec) -> Kernel:
        products = gram(pool, recipe.merged, spec.name)
        return linear(_terms(recipe.merged, _arc(shared(recipe, "t", spec), products, _SLERP_COLLINEAR), run=1))

    return lowering


def _metagpt(recipe: Recipe, pool: ModelPool) -> Lowering:
    """`c_k = n_k^2 / sum_j n_j^2` (Zhou et al. 2024, "MetaGPT"), norms of task vectors of the model or each tensor."""

    def squares(specs: Sequence[TensorSpec]) -> Array:
        found = (gram(pool, recipe.sources, spec.name, base=recipe.base) for spec in specs)
        return cast("Array", sum(products.diagonal(axis1=1, axis2=2) for products in found))

    of_model = None
    if recipe.option("per") == "model":
        of_model = squares([spec for spec in pool.specs if is_float(spec)])

    def lowering(spec: TensorSpec) -> Kernel:
        found = squares([spec]) if of_model is None else of_model
        return delta(recipe, spec, _terms(recipe.sources, found / (found.sum() or 1.0), run=1), 1.0)

    return lowering


def _by(coefficients: Coefficients) -> Callable[[Recipe, ModelPool], Lowering]:
    """The lowering of an operator on its sources' weights or, if the recipe has a base, on their task vectors."""

    def lowerings(recipe: Recipe, pool: ModelPool) -> Lowering:
        per = cast("Slicing", dict(recipe.options).get("per", "tensor"))

        def lowering(spec: TensorSpec) -> Kernel:
            products = gram(pool, recipe.sources, spec.name, base=recipe.base, per=per)
            terms = _terms(recipe.sources, coefficients(recipe, spec, products), run=run_of(spec.shape, per))
            return linear(terms) if recipe.base is None else delta(recipe, spec, terms, 1.0)

        return lowering

    return lowerings


def _nuslerp(recipe: Recipe, spec: TensorSpec, products: Array) -> Array:
    """Spherical interpolation between two sources, `t = w_2 / (w_1 + w_2)` (mergekit's NuSLERP)."""
    if len(recipe.sources) == 1:
        return np.ones((len(products), 1))
    first, second = per_source(recipe, "weight", spec)
    t = 0.5 if abs(first + second) < _CANCELLED else second / (first + second)
    return _arc(t, products, _NUSLERP_COLLINEAR)


def _multislerp(recipe: Recipe, spec: TensorSpec, products: Array) -> Array:
    """`c_k = w_k / n_k * sum_j w_j n_j / |sum_j w_j u_j|`: the weighted mean direction at the weighted mean length.

    mergekit's Multi-SLERP. Its step on the tangent plane is left out because it is zero: the plane touches the sphere
    at the weighted mean itself.
    """
    weights = _normalized(per_source(recipe, "weight", spec))
    lengths, cosines = _directions(products[0])
    length = _length(weights, cosines)
    if length < _CANCELLED:
        return weights[None]
    return ((weights / _or_one(lengths)) * (weights @ lengths) / length)[None]


def _karcher(recipe: Recipe, spec: TensorSpec, products: Array) -> Array:
    """The Riemannian mean of the directions at the weighted mean length (Karcher 1977), at most 10 steps."""
    weights = _normalized(per_source(recipe, "weight", spec))
    lengths, cosines = _directions(products[0])
    pulls = _normalized(np.where(lengths > _SHORT, weights, 0.0))
    mean = pulls if _length(pulls, cosines) >= _KARCHER_TOLERANCE else np.eye(len(pulls))[np.argmax(lengths > _SHORT)]
    mean = mean / (_length(mean, cosines) or 1.0)
    for _ in range(_KARCHER_STEPS):
        step = _tangent(pulls, mean, cosines)
        size = _length(step, cosines)
        if size < _KARCHER_TOLERANCE:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / _length(mean, cosines)
    return (mean / _or_one(lengths) * (weights @ lengths))[None]


def _model_stock(recipe: Recipe, spec: TensorSpec, products: Array) -> Array:
    """`c_k = t / K`, `t = K c / (1 + (K - 1) c)`, c the mean cosine between task vectors (Jang et al. 2024)."""
    count = products.shape[1]
    pairs = np.triu_indices(count, k=1)
    lengths = np.sqrt(products.diagonal(axis1=1, axis2=2))
    scales = lengths[:, pairs[0]] * lengths[:, pairs[1]]
    scales = np.maximum(scales, 1e-6) if recipe.option("floor") else np.where(scales > _SHORT**2, scales, 1.0)
    cosines = np.clip(products[:, pairs[0], pairs[1]] / scales, -1.0, 1.0)
    mean = cosines.mean(axis=1) if count > 1 else np.ones(len(products))
    below = 1.0 + (count - 1) * mean
    singular = np.abs(below) < _CANCELLED
    ratio = np.where(singular, 0.0, count * mean / np.where(singular, 1.0, below))
    return np.repeat(ratio[:, None] / count, count, axis=1)


def _arc(t: float, products: Array, collinear: float) -> Array:
    """`sin((1 - t) a) / sin(a)` and `sin(t a) / sin(a)` for two vectors at angle a."""
    lengths = _or_one(np.sqrt(products.diagonal(axis1=1, axis2=2)))
    cosines = np.clip(products[:, 0, 1] / lengths.prod(axis=1), -1.0, 1.0)
    straight = np.abs(cosines) > collinear
    angles = np.arccos(np.where(straight, 0.0, cosines))
    ends = np.stack([1.0 - t + 0 * angles, t + 0 * angles], axis=1)
    curved = np.sin(ends * angles[:, None]) / np.sin(angles)[:, None]
    return np.where(straight[:, None], ends, curved)


def _directions(products: Array) -> tuple[Array, Array]:
    """Lengths `[K]` and cosines `[K, K]`."""
    lengths = np.sqrt(np.diag(products))
    divisors = _or_one(lengths)
    cosines = np.where(np.outer(lengths, lengths) > 0, products / np.outer(divisors, divisors), 0.0)
    return lengths, cosines


def _tangent(pulls: Array, mean: Array, cosines: Array) -> Array:
    """`sum_k p_k a_k / sin(a_k) (u_k - cos(a_k) m)` in terms of the `u_k`, with `a_k` the angle from m to `u_k`."""
    towards = np.clip(cosines @ mean, -1.0, 1.0)
    angles = np.arccos(towards)
    pulling = (angles >= _KARCHER_TOLERANCE) & (angles <= math.pi - _KARCHER_TOLERANCE) & (pulls != 0)
    strengths = np.where(pulling, pulls * angles / np.where(pulling, np.sin(angles), 1.0), 0.0)
    return strengths - (strengths @ towards) * mean


def _length(combination: Array, cosines: Array) -> float:
    """Length of a combination of unit vectors."""
    return math.sqrt(max(float(combination @ cosines @ combination), 0.0))


def _normalized(weights: Sequence[float] | Array) -> Array:
    total = float(np.sum(weights))
    return np.asarray(weights, dtype=np.float64) / (total if abs(total) >= _SHORT else 1.0)


def _or_one(lengths: Array) -> Array:
    return np.where(lengths > _SHORT, lengths, 1.0)


def _terms(sources: Sequence[str], coefficients: Array, *, run: int) -> tuple[Term, ...]:
    """Sources with their coefficients `[slices, K]`; those that are 0 throughout are left out."""
    columns = zip(sources, coefficients.T, strict=True)
    return tuple(_term(source, column, run) for source, column in columns if column.any())


def _term(source: str, coefficients: Array, run: int) -> Term:
    first = coefficients[0]
    if np.all(coefficients == first):
        return Term(source=source, weight=float(first))
    return Term(source=source, weight=1.0, factors=Factors.of(coefficients, run))


GRAM_LOWERINGS: Mapping[str, Callable[[Recipe, ModelPool], Lowering]] = MappingProxyType(
    {
        "slerp": _slerp,
        "nuslerp": _by(_nuslerp),
        "nuslerp_delta": _by(_nuslerp),
        "multislerp": _by(_multislerp),
        "multislerp_delta": _by(_multislerp),
        "karcher": _by(_karcher),
        "karcher_delta": _by(_karcher),
        "model_stock": _by(_model_stock),
        "metagpt": _metagpt,
    }
)
