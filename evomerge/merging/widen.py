"""WIDEN: task vectors weighted input by input, by how much an expert turned or stretched the weights there.

`theta_0 + lambda sum_k w_k c_kj x_k` on input j, with `c_kj = (score(m_kj) + score(d_kj)) / 2`. Over the inputs of a
matrix, m ranks how much expert k changed the length of the weights of input j, `| |W_kj| - |W_0j| |`, and d how much
their direction, `1 - cos(W_kj, W_0j)`; ranks r run from 0 to below 1. A score is the softmax of r over the experts, or
s where `r > t mean(r)`. (Yu et al. 2024, "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language Models
via Weight Disentanglement"; details as in the authors' code, in which all `w_k` and lambda are 1.)

Where that leaves room:

* Tensors of one axis have no ranks: their scores are those of `|x|` itself, and coefficients are the scores.
* In embeddings, tokens (or positions) take the place of inputs. In stacks of matrices, rows do.
* Equal values rank in their order; lengths and directions are compared to 1e-12, far above rounding in fp64. Weights
  that are all zero have no direction, which differs by 1 from any that there is.
* All experts take part in the softmax, also those of weight 0.

Legend: K experts, n inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging import prepared
from evomerge.merging.factors import Factors
from evomerge.merging.gram import Slicing, gram, run_of
from evomerge.merging.layout import stores_inputs_first
from evomerge.merging.lowering import Lowering, base_of, delta, per_source, shared
from evomerge.merging.plan import Kernel, Term

if TYPE_CHECKING:
    import numpy.typing as npt

    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

    Array = npt.NDArray[np.float64]

__all__ = ["widen"]

_DECIMALS = 12


def widen(recipe: Recipe, pool: ModelPool) -> Lowering:
    """The kernel of each tensor."""

    def lowering(spec: TensorSpec) -> Kernel:
        t, s = shared(recipe, "t", spec), shared(recipe, "s", spec)
        if len(spec.shape) < 2:
            scores, run = _scores(_magnitudes(recipe, pool, spec), t, s), 1
        else:
            per: Slicing = "row" if _has_inputs_in_rows(spec, str(pool.config.get("model_type"))) else "column"
            places = _places_of(recipe, pool, spec, per)
            scores = np.mean([_scores(place, t, s, unit=place.shape[1]) for place in places], axis=0)
            run = run_of(spec.shape, per)
        rows = zip(recipe.sources, per_source(recipe, "weight", spec), scores, strict=True)
        return delta(recipe, spec, [_term(source, weight, row, run) for source, weight, row in rows], 1.0)

    return lowering


def _term(source: str, weight: float, scores: Array, run: int) -> Term:
    if np.all(scores == scores[0]):
        return Term(source=source, weight=weight * float(scores[0]))
    return Term(source=source, weight=weight, factors=Factors.of(scores, run))


def _scores(significance: Array, t: float, s: float, *, unit: int = 1) -> Array:
    """Softmax over experts, or s where an expert's significance is above t times its mean: `[K, n]`.

    Significance is given in fractions of a unit, so that ranks are whole numbers and compared exactly.
    """
    exponentials = np.exp(significance / unit)
    above = significance > t * significance.mean(axis=1, keepdims=True)
    return np.where(above, s, exponentials / exponentials.sum(axis=0))


def _has_inputs_in_rows(spec: TensorSpec, model_type: str) -> bool:
    return len(spec.shape) > 2 or spec.role == "embed" or stores_inputs_first(spec.name, 2, model_type)


def _places_of(recipe: Recipe, pool: ModelPool, spec: TensorSpec, per: Slicing) -> Iterator[Array]:
    """`n r`, by length and by direction, each `[K, n]`."""
    kind = f"ranks by length and direction of each {per}"
    models = (base_of(recipe), *recipe.sources)
    found = prepared.arrays(pool, kind, models, (spec.name,), lambda: _ranked(gram(pool, models, spec.name, per=per)))
    return (places.astype(np.float64) for places in found)


def _ranked(products: Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Places of the changes of length and direction, from products `[n, 1 + K, 1 + K]` of the base and the experts."""
    squares = products.diagonal(axis1=1, axis2=2).T
    lengths = np.sqrt(squares)
    scales = np.sqrt(squares[1:] * squares[0])
    cosines = np.where(scales > 0, products[:, 0, 1:].T / np.where(scales > 0, scales, 1.0), squares[1:] == squares[0])
    return _places(np.abs(lengths[1:] - lengths[0])), _places(1 - cosines)


def _places(values: Array) -> npt.NDArray[np.int32]:
    """How many values of its row are smaller than each, or equal and before it: `[K, n]`."""
    order = np.argsort(np.round(values, _DECIMALS), axis=1, kind="stable")
    return np.argsort(order, axis=1, kind="stable").astype(np.int32)


def _magnitudes(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> Array:
    """`|x_k|` formed in fp32, `[K, n]`."""
    base = pool.tensor(base_of(recipe), spec.name).float()
    changes = (pool.tensor(source, spec.name).float() - base for source in recipe.sources)
    return np.stack([change.abs().double().reshape(-1).numpy() for change in changes])
