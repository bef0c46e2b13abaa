"""How large a change is among its like: magnitude ranks in 256 levels, the same for every candidate.

Level 0 is the smallest, 255 the largest. Among the elements of a row, ranks are exact (equal magnitudes rank by index,
the first highest) and level l is `round(255 (rank - 1) / (n - 1))`; a row of one element has level 255. One byte per
element is kept. Over a whole tensor, magnitudes are compared as bf16 holds them, rounded toward zero, equal ones share
their middle rank, and level l is `floor(256 rank / n)`. Only a table of the 2^15 such magnitudes is kept.

Knows nothing of what ranks are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evomerge.merging import prepared, rank_tables
from evomerge.merging.keep_rules import RankScope
from evomerge.merging.statistics import CHUNK, Difference

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool

__all__ = ["levels", "table"]


def table(pool: ModelPool, difference: Difference, scope: RankScope) -> torch.Tensor:
    """What `levels` needs of one tensor: kept, so that ranks are computed once.

    Returns:
        uint8; of shape `[elements]` by row, `[2^15]` by tensor.
    """
    make = _by_row if scope == "row" else _by_bin
    found = prepared.arrays(
        pool, f"levels by {scope}", difference.models, difference.names, lambda: (make(pool, difference).numpy(),)
    )
    return torch.from_numpy(found[0])


def levels(table: torch.Tensor, scope: RankScope, start: int, magnitudes: torch.Tensor) -> torch.Tensor:
    """Levels of a run of elements.

    Args:
        table: of their tensor.
        scope: of the table.
        start: index of the first element in the flattened tensor.
        magnitudes: `|x|`, fp32, shape `(count,)`.

    Returns:
        int32, shape `(count,)`.
    """
    if scope == "row":
        return table[start : start + len(magnitudes)].int()
    return table.index_select(0, rank_tables.bin_of(magnitudes)).int()


def _by_row(pool: ModelPool, difference: Difference) -> torch.Tensor:
    source, base = (pool.tensor(model, *difference.names) for model in (difference.source, difference.base))
    columns = base.shape[-1] if base.ndim else 1
    span = max(columns - 1, 1)
    falling = (255 * (span - torch.arange(columns)) + span // 2) // span
    found = torch.empty(base.numel() // columns, columns, dtype=torch.uint8)
    rows = max(CHUNK // columns, 1)
    for top in range(0, len(found), rows):
        part = slice(top, top + rows)
        x = source.reshape(-1, columns)[part].float() - base.reshape(-1, columns)[part].float()
        order = rank_tables.descending(x.abs_())
        found[part].scatter_(1, order, falling.to(torch.uint8).expand_as(order))
    return found.view(-1)


def _by_bin(pool: ModelPool, difference: Difference) -> torch.Tensor:
    held = rank_tables.histogram(pool, difference)
    upto = held.cumsum(0)
    return ((2 * upto - held) * 128 // upto[-1]).to(torch.uint8)
