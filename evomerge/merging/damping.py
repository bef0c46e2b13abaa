"""AIM: spare the base's weights on the inputs that it uses most. Works on top of every operator that has a base.

`theta_0 + (merged - theta_0) (1 - (1 - omega) s_j)` for a weight on input j of a linear map, `s_j = a_j / max a`, `a_j`
the base's `mean |x_j|` over a calibration text (Activation-Informed Merging, Nobari et al. 2025). Tensors that have no
inputs of their own (norms, biases, embeddings, tied output heads) are left alone; the authors' code also treats norms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.errors import MergeError
from evomerge.merging.calibrated import importance
from evomerge.merging.factors import Factors
from evomerge.merging.layout import stores_inputs_first
from evomerge.merging.lowering import base_of, shared
from evomerge.merging.plan import Copy, Damping, Delta, TensorPlan, Term

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

__all__ = ["damped"]


def damped(plan: TensorPlan, recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> TensorPlan:
    """One tensor's plan with the recipe's damping; the plan itself where there is none.

    Args:
        plan: of the recipe's operator alone.
        recipe: whose `omega` counts.
        pool: with a calibration, if `omega` is below 1.
        spec: of the same tensor.

    Raises:
        MergeError: the pool has no calibration, or one that does not fit.
    """
    base = base_of(recipe)
    factors = _factors(recipe, pool, spec) if "omega" in dict(recipe.parameters) else None
    if factors is None or plan.kernel == Copy(source=base):
        return plan
    kernel = plan.kernel
    if isinstance(kernel, Copy):
        kernel = Delta(base=base, terms=(Term(source=kernel.source, weight=1.0),), divisor=1.0, scale=1.0)
    return replace(plan, kernel=kernel, damping=Damping(base=base, factors=factors))


def _factors(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> Factors | None:
    """What is left of the changes, per input; None where that is all."""
    omega = shared(recipe, "omega", spec)
    means = importance(pool, spec.name) if omega != 1 else None
    if means is None or not means.any():
        return None
    first = stores_inputs_first(spec.name, len(spec.shape), str(pool.config.get("model_type")))
    if len(spec.shape) != 2 or len(means) != spec.shape[0 if first else 1]:
        raise MergeError(
            f"tensor {spec.name}: expected one statistic for each input of a matrix {[*spec.shape]}; "
            f"got {len(means)}; this layout is not known, leave omega at 1"
        )
    return Factors.of(1 - (1 - omega) * means / means.max(), spec.shape[1] if first else 1)
