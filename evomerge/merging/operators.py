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

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from evomerge.errors import MergeError
from evomerge.merging.core import core_space
from evomerge.merging.damping import damped
from evomerge.merging.gram_operators import GRAM_LOWERINGS
from evomerge.merging.lowering import (
    Lowering,
    base_of,
    delta,
    divisor_of,
    linear,
    per_source,
    scale_of,
    terms_of,
)
from evomerge.merging.plan import Copy, Core, Isotropic, Kernel, MergePlan, TensorPlan
from evomerge.merging.routing import merged_specs, routed
from evomerge.merging.sparse import is_float
from evomerge.merging.sparse_operators import SPARSE_LOWERINGS
from evomerge.merging.widen import widen
from evomerge.recipe import DEPTH_ROLES
from evomerge.recipe.averaging import as_linear
from evomerge.recipe.operators import plugged_lowering

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe, Role

__all__ = ["lower"]


def lower(recipe: Recipe, pool: ModelPool) -> MergePlan:
    """Bring a recipe down to numbers.

    Args:
        recipe: what to merge.
        pool: the models that it names. Facts about them (scalar products, order statistics) and their variants are
            computed when first needed and kept, so later calls are quick.

    Raises:
        MergeError: the recipe names models that the pool lacks, has another number of layers, asks for a calibration
            that the pool lacks, or for a path that the architecture does not take.
    """
    _check(recipe, pool)
    merged = _in_core_space(recipe, pool) if recipe.space == "core" else _on_weights(recipe.on_variants(), pool)
    return routed(merged, recipe, pool) if recipe.path else merged


def _on_weights(recipe: Recipe, pool: ModelPool) -> MergePlan:
    lowering = _lowering(recipe, pool)
    specs = merged_specs(pool, recipe.path)
    return MergePlan(tensors=tuple(_tensor(spec, recipe, pool, lowering) for spec in specs))


def _in_core_space(recipe: Recipe, pool: ModelPool) -> MergePlan:
    """The plan of a merge of adapters in the coordinates that they share, `evomerge.merging.core`.

    Weights that an adapter stores whole are merged as they are, under the same lowering; the others that no adapter
    changes are copies. What counts or ranks the elements of the model takes these alone.
    """
    if recipe.base != pool.base:
        raise MergeError(f"core space: expected {pool.base!r} as base, which the adapters change; got {recipe.base!r}")
    space = core_space(pool, recipe.sources)
    lowering = _lowering(recipe, space.pool) if space.pool.specs else None
    inner = {spec.name: lowering(spec) for spec in space.pool.specs} if lowering else {}

    def outer(spec: TensorSpec) -> Kernel:
        kernel = inner.get(spec.name, Copy(source=pool.base))
        if isinstance(kernel, Copy) or spec.name not in space.spans:
            return kernel
        return Core(base=pool.base, sources=recipe.sources, inner=kernel)

    return MergePlan(tensors=tuple(_tensor(spec, recipe, pool, outer) for spec in merged_specs(pool, recipe.path)))


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
    plan = TensorPlan(name=spec.name, shape=spec.shape, dtype=recipe.dtype, kernel=lowering(spec))
    return damped(plan, recipe, pool, spec)


def _lowering(recipe: Recipe, pool: ModelPool) -> Lowering:
    lowered: Lowering = (plugged_lowering(recipe.operator) or _LOWERINGS[recipe.operator])(recipe, pool)
    return lowered


def _linear(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Model soup: `sum w_k theta_k`, divided by `sum w_k` when normalized (Wortsman et al. 2022)."""

    def lowering(spec: TensorSpec) -> Kernel:
        weights = per_source(recipe, "weight", spec)
        divisor = divisor_of(weights) if recipe.option("normalize") else 1.0
        return linear(terms_of(recipe.sources, weights), divisor)

    return _once_a_place(lowering)


def _checkpoint_average(recipe: Recipe, pool: ModelPool) -> Lowering:
    """A linear merge whose weights follow from a metric or a schedule."""
    return _linear(as_linear(recipe), pool)


def _task_arithmetic(recipe: Recipe, pool: ModelPool) -> Lowering:
    """`theta_0 + lambda sum w_k x_k` (Ilharco et al. 2023), divided by `sum w_k` when normalized."""

    def lowering(spec: TensorSpec) -> Kernel:
        weights = per_source(recipe, "weight", spec)
        divisor = divisor_of(weights) if recipe.option("normalize") else 1.0
        return delta(recipe, spec, terms_of(recipe.sources, weights), divisor)

    return _once_a_place(lowering)


def _once_a_place(lowering: Lowering) -> Lowering:
    """The same kernel for all tensors of a role in a layer: for operators that ask nothing else of a tensor."""
    kernels: dict[tuple[Role, int | None], Kernel] = {}

    def lowered(spec: TensorSpec) -> Kernel:
        place = (spec.role, spec.layer)
        if place not in kernels:
            kernels[place] = lowering(spec)
        return kernels[place]

    return lowered


def _iso_c(recipe: Recipe, pool: ModelPool) -> Lowering:
    """`theta_0 + lambda mean(S) U V^T` for `sum w_k x_k = U S V^T` (Marczak et al. 2025, "Iso-C").

    For the matrices of layers, expert by expert in stacks of them. Vectors take the mean of the task vectors, as in the
    authors' code; embeddings and heads do too, whose rows are vectors of tokens.
    """

    def lowering(spec: TensorSpec) -> Kernel:
        terms = terms_of(recipe.sources, per_source(recipe, "weight", spec))
        scale = scale_of(recipe, spec)
        if len(spec.shape) not in (2, 3) or spec.role not in DEPTH_ROLES:
            return delta(recipe, spec, terms, float(len(recipe.sources)))
        if not terms or not scale:
            return Copy(source=base_of(recipe))
        return Isotropic(base=base_of(recipe), terms=terms, scale=scale)

    return lowering


_LOWERINGS: Mapping[str, Callable[[Recipe, ModelPool], Lowering]] = MappingProxyType(
    {
        "linear": _linear,
        "task_arithmetic": _task_arithmetic,
        "iso_c": _iso_c,
        "widen": widen,
        "metric_average": _checkpoint_average,
        "decay_average": _checkpoint_average,
        **GRAM_LOWERINGS,
        **SPARSE_LOWERINGS,
    }
)
