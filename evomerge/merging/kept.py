"""What random masks keep of changes: sums of magnitudes, the same to the last bit in any process.

Before they are added, magnitudes are rounded to multiples of about 2^-32 of the largest in their tensor. Sums of those
have no rounding error in fp64, so that neither order nor blocks nor compilers matter. What masks of all densities keep
of a tensor is tabled in one pass, for searches that change densities. Knows nothing of recipes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from evomerge.merging import expressions, masks, prepared, ranks, statistics
from evomerge.merging.compiled import COMPILER, Compiler
from evomerge.merging.keep_rules import Drop, Prune
from evomerge.merging.operands import summands_of
from evomerge.merging.statistics import Difference

if TYPE_CHECKING:
    import numpy.typing as npt

    from evomerge.merging.pool import ModelPool

__all__ = ["TABLED", "kept_l1", "kept_l1_from_table"]

TABLED = 4 * masks.STEPS
"""Elements of a tensor from which on a table is worth its place."""

_LEAST_EXPONENT = -60
"""Of the largest magnitude; below, sums are too small to matter."""


@torch.inference_mode()
def kept_l1(
    pool: ModelPool, base: str, rules: Mapping[str, Drop | Prune], name: str, *, compiler: Compiler = COMPILER
) -> dict[str, float]:
    """Sums of the magnitudes that masks keep of one tensor's changes, by source.

    Args:
        pool: the models.
        base: what sources are compared with.
        rules: of each source; of one type, and with ranks of one scope.
        name: the tensor.
        compiler: decides what is compiled.
    """
    differences = {source: Difference(base=base, source=source, names=(name,)) for source in rules}
    grids = [_grid(pool, difference) for difference in differences.values()]
    tables = [_table(pool, differences[source], rule) for source, rule in rules.items()]
    values = [pool.tensor(model, name).reshape(-1) for model in (base, *rules)]
    sums = compiler.sums(summands_of(values, list(rules.values()), grids, tables))
    if sums is None:
        rows = zip(differences.values(), rules.values(), grids, tables, strict=True)
        sums = [_sum(pool, difference, rule, grid, table) for difference, rule, grid, table in rows]
    return dict(zip(rules, sums, strict=True))


@torch.inference_mode()
def kept_l1_from_table(pool: ModelPool, base: str, source: str, rule: Drop | Prune, name: str) -> float:
    """The same for one source, whatever the density: from a table, made when first asked for and kept.

    Args:
        pool: the models.
        base: what the source is compared with.
        source: the model.
        rule: of the source; its density is a multiple of `1 / masks.STEPS`.
        name: the tensor.
    """
    difference = Difference(base=base, source=source, names=(name,))
    window = f"{rule.epsilon!r} by {rule.ranks}" if isinstance(rule, Prune) else "none"
    (upto,) = prepared.arrays(
        pool,
        f"kept by mask {rule.seed}, window {window}",
        difference.models,
        difference.names,
        lambda: (_upto(pool, difference, rule),),
    )
    return float(upto[round(rule.density * masks.STEPS)])


def _upto(pool: ModelPool, difference: Difference, rule: Drop | Prune) -> npt.NDArray[np.float64]:
    """`[STEPS + 1]`: for every density the sum of what is kept; each is exact but for one rounding."""
    grid, table = _grid(pool, difference), _table(pool, difference, rule)
    far, unit = torch.tensor(grid), math.ldexp(grid / 1.5, -12)
    sums = np.zeros(masks.STEPS, np.int64)
    for start, block in difference.blocks(pool):
        if isinstance(rule, Prune) and table is not None:
            levels = ranks.levels(table, rule.ranks, start, block)
            places = masks.bins(rule.seed, start, len(block), rule.epsilon, levels)
        else:
            places = masks.bins(rule.seed, start, len(block))
        units = expressions.on_grid(block, far).div_(unit)
        sums += np.bincount(places.numpy(), units.numpy(), masks.STEPS).astype(np.int64)
    return np.concatenate([[0], sums.cumsum()]) * unit


def _table(pool: ModelPool, difference: Difference, rule: Drop | Prune) -> torch.Tensor | None:
    return ranks.table(pool, difference, rule.ranks) if isinstance(rule, Prune) else None


def _grid(pool: ModelPool, difference: Difference) -> float:
    """See `expressions.on_grid`."""
    _, exponent = math.frexp(statistics.largest(pool, difference))
    return math.ldexp(1.5, max(exponent, _LEAST_EXPONENT) - 32 + 12)


def _sum(pool: ModelPool, difference: Difference, rule: Drop | Prune, grid: float, table: torch.Tensor | None) -> float:
    far = torch.tensor(grid)
    return math.fsum(
        float(expressions.on_grid(block.mul_(_mask(rule, table, start, block)), far).sum())
        for start, block in difference.blocks(pool)
    )


def _mask(rule: Drop | Prune, table: torch.Tensor | None, start: int, magnitudes: torch.Tensor) -> torch.Tensor:
    if isinstance(rule, Drop) or table is None:
        return masks.keep(rule.seed, rule.density, start, len(magnitudes))
    levels = ranks.levels(table, rule.ranks, start, magnitudes)
    return masks.keep_by_level(rule.seed, rule.density, rule.epsilon, levels, start)
