"""What lowerings share: reading a recipe's numbers for one tensor, and the two commonest kernels built from them.

Trivial merges become copies, so that they keep a model's exact bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging.plan import Copy, Delta, Kernel, Linear, Term, Vote

if TYPE_CHECKING:
    from evomerge.merging.pool import TensorSpec
    from evomerge.merging.sparse import Part
    from evomerge.recipe import Recipe

__all__ = [
    "Lowering",
    "base_of",
    "delta",
    "divisor_of",
    "linear",
    "per_source",
    "scale_of",
    "shared",
    "single",
    "terms_of",
    "vote",
]

Lowering = Callable[["TensorSpec"], Kernel]
"""The kernel of one tensor, under one recipe."""


def vote(recipe: Recipe, spec: TensorSpec, parts: Sequence[Part]) -> Kernel:
    """A sign election among sparsified sources, by the recipe's options `vote` and `aggregate`."""
    weighted = recipe.option("vote") == "weighted"
    if weighted:
        parts = [part for part in parts if part.weight]
    shares = [_share(str(recipe.option("aggregate")), part.weight, weighted=weighted) for part in parts]
    if len(parts) < 2 or not any(part.weight for part in parts):
        return delta(recipe, spec, [part.term for part in parts], divisor_of(shares))
    scale = scale_of(recipe, spec)
    if not scale:
        return Copy(source=base_of(recipe))
    return Vote(
        base=base_of(recipe),
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


def delta(recipe: Recipe, spec: TensorSpec, terms: Sequence[Term], divisor: float) -> Kernel:
    """`theta_0 + lambda * sum of terms / divisor`, or a copy where that is all it comes to."""
    terms = tuple(term for term in terms if term.weight)
    scale = scale_of(recipe, spec)
    if not terms or not scale:
        return Copy(source=base_of(recipe))
    if len(terms) == 1 and _is_whole(terms[0], divisor, scale):
        return Copy(source=terms[0].source)
    return Delta(base=base_of(recipe), terms=terms, divisor=divisor, scale=scale)


def linear(terms: Sequence[Term], divisor: float = 1.0) -> Kernel:
    """`sum of terms / divisor`, or a copy where that is all it comes to."""
    if len(terms) == 1 and _is_whole(terms[0], divisor):
        return Copy(source=terms[0].source)
    return Linear(terms=tuple(terms), divisor=divisor)


def _is_whole(term: Term, divisor: float, scale: float = 1.0) -> bool:
    return term.keep is None and term.factors is None and single(term.weight * scale) == divisor


def terms_of(sources: Sequence[str], weights: Sequence[float]) -> tuple[Term, ...]:
    """Whole sources with weights that are not 0."""
    pairs = zip(sources, weights, strict=True)
    return tuple(Term(source=source, weight=weight) for source, weight in pairs if weight)


def per_source(recipe: Recipe, name: str, spec: TensorSpec) -> tuple[float, ...]:
    """One parameter of every source, for one tensor."""
    return recipe.parameter(name).at(spec.role, spec.layer)


def shared(recipe: Recipe, name: str, spec: TensorSpec) -> float:
    """One parameter that all sources share, for one tensor."""
    return recipe.parameter(name).at(spec.role, spec.layer)[0]


def scale_of(recipe: Recipe, spec: TensorSpec) -> float:
    """`lambda`; 1 for operators without one."""
    return shared(recipe, "lambda", spec) if "lambda" in dict(recipe.parameters) else 1.0


def base_of(recipe: Recipe) -> str:
    """The base, of an operator that needs one."""
    return str(recipe.base)


def divisor_of(weights: Sequence[float]) -> float:
    """Sum of the weights, accumulated in fp32 as the sums are that it divides; 1 where they cancel.

    Whether they cancel is asked of the exact sum: what fp32 leaves of 0.05 + 0.3 - 0.35 is a rounding error.
    """
    if abs(math.fsum(weights)) < 1e-8:
        return 1.0
    total = np.float32(0)
    for weight in weights:
        total += np.float32(weight)
    return float(total) if abs(total) >= 1e-8 else 1.0


def single(value: float) -> float:
    """A number as fp32 holds it."""
    return float(np.float32(value))
