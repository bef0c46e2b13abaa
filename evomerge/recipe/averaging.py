"""Averages of checkpoints of one training run, as the linear recipes that they are.

Knows nothing of tensors: the weights follow from the recipe alone.

Legend: K sources in order; `w_k` weight of source k, k = 1 .. K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from evomerge.recipe.field import Field, Role
from evomerge.recipe.operators import OPERATORS
from evomerge.recipe.recipe import Recipe, options_of

__all__ = ["as_linear"]


def as_linear(recipe: Recipe) -> Recipe:
    """The linear recipe that an average of checkpoints stands for; any other recipe is returned as it is.

    * `metric_average`: `w_k` proportional to `metric_k ** power` (Wang et al. 2025, "Metrics-Weighted Averaging"); the
      metric may be a score, a step, or, with a negative power, a loss.
    * `decay_average`: the sources are checkpoints in order of training, and the merge stands for a decay of the
      learning rate over them, `w_k = d_k - d_(k+1)` (Tian et al. 2025, "WSM"). The decay is
      `d_k = 1 - ((k - 1) / K) ** power`: linear, so that all weights are equal, at 1; below, early checkpoints weigh
      more; above, late ones.

    Weights are kept to 1e-6 and divided by their sum, as those of every linear recipe.
    """
    if recipe.operator not in {"metric_average", "decay_average"}:
        return recipe
    power = recipe.parameter("power")
    rows = {
        role: [_weights(recipe, role, layer, row[0]) for layer, row in enumerate(rows)]
        for role, rows in power.by_role()
    }
    return Recipe(
        operator="linear",
        options=options_of(OPERATORS["linear"], "paper"),
        base=None,
        sources=recipe.sources,
        parameters=(("weight", Field.of(rows)),),
        path=recipe.path,
        dtype=recipe.dtype,
    )


def _weights(recipe: Recipe, role: Role, layer: int, power: float) -> list[float]:
    if recipe.operator == "metric_average":
        return _by_metric(recipe.parameter("metric").at(role, layer), power)
    return _by_decay(len(recipe.sources), power)


def _by_metric(metrics: Sequence[float], power: float) -> list[float]:
    logs = [power * math.log(metric) for metric in metrics]
    shares = [math.exp(log - max(logs)) for log in logs]
    return [share / sum(shares) for share in shares]


def _by_decay(count: int, power: float) -> list[float]:
    passed = [(k / count) ** power for k in range(count + 1)]
    return [after - before for before, after in pairwise(passed)]
