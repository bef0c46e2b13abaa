"""Exact order statistics of more numbers than fit in memory, without sorting: two passes that count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

__all__ = ["order_statistics"]

_BINS = 1 << 16
"""Values that half of the bits can take."""

_PART = 1 << 18
"""Elements of each row that are counted at a time."""


def order_statistics(blocks: Callable[[], Iterator[torch.Tensor]], ranks: Sequence[int]) -> torch.Tensor:
    """Numbers of some ranks, of each row.

    The bits of fp32 numbers, read as integers, are in the order of the numbers once those of negative ones are turned.
    The first pass counts their upper halves; the second, among numbers that share a wanted one's, the lower halves.

    Args:
        blocks: fp32 `[rows, n]`, side by side a matrix; called twice, for the same blocks.
        ranks: from 0, the smallest.

    Returns:
        fp32 `[rows, ranks]`.
    """
    upper = sum((_counts(rows >> 16, _BINS // 2) for rows in _keys(blocks)), torch.tensor(0))
    upto = upper.cumsum(1)
    wanted = torch.tensor(ranks).repeat(len(upper), 1)
    bins = torch.searchsorted(upto, wanted, right=True)
    lower = torch.zeros(*bins.shape, _BINS, dtype=torch.int64)
    for rows in _keys(blocks):
        for place in range(len(ranks)):
            shared = [row[row >> 16 == bins[i, place] - _BINS // 2] for i, row in enumerate(rows)]
            lower[:, place] += _counts([row & (_BINS - 1) for row in shared], 0)
    left = wanted - (upto - upper).gather(1, bins)
    halves = torch.searchsorted(lower.cumsum(2), left[..., None], right=True)[..., 0]
    return _turned(((bins - _BINS // 2) * _BINS + halves).int()).view(torch.float32)


def _keys(blocks: Callable[[], Iterator[torch.Tensor]]) -> Iterator[torch.Tensor]:
    """int32 `[rows, n]` in the order of the numbers."""
    for block in blocks():
        for part in block.split(_PART, dim=1):  # type: ignore[no-untyped-call]
            yield _turned(part.view(torch.int32))


def _turned(bits: torch.Tensor) -> torch.Tensor:
    """Its own inverse."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _counts(rows: Iterable[torch.Tensor], first: int) -> torch.Tensor:
    """How many of each row there are of each number from `-first` on; `[rows, _BINS]`."""
    return torch.stack([torch.bincount(row + first, minlength=_BINS) for row in rows])
