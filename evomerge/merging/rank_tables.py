"""Order statistics of a pool: which element holds a rank by magnitude, from the smallest table that tells it.

Tables are facts of the pool, kept as others are (see `statistics`); answers are exact, whichever table there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evomerge.merging import prepared
from evomerge.merging.statistics import CHUNK, TILE, Difference, Measure, facts

if TYPE_CHECKING:
    import numpy.typing as npt

    from evomerge.merging.pool import ModelPool

__all__ = ["Rank", "bin_of", "descending", "histogram", "ranked"]

_FEW = 1 << 12
"""Runs of equal magnitudes that a table may have in any case; beyond, one for every 32 elements."""

_BINS = 1 << 15
"""Upper halves of the bit patterns of magnitudes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """The element that holds some rank by magnitude; equal magnitudes rank by index, lowest first."""

    magnitude: float
    index: int


def ranked(pool: ModelPool, measure: Measure, ranks: Iterable[int]) -> dict[int, Rank]:
    """The elements of some ranks, 1 being the largest magnitude.

    Up to 2^18 elements this is a look-up in a sorted table, and beyond in a table of equal magnitudes, if they are few:
    16-bit weights differ by few distinct amounts. Else a histogram of the upper halves of their bits tells each rank's
    bin, a pass over the weights counts the lower halves in those bins, and another one finds the elements. The answer
    is exact each way.

    Args:
        pool: the models.
        measure: what to rank by.
        ranks: each at least 1 and at most the number of elements.
    """
    found = facts(pool, "ranks", measure, lambda: _table(pool, measure))
    table: Callable[[ModelPool, Any, Sequence[int]], dict[int, Rank]] = _TABLES[len(found)](*found)
    return table(pool, measure, sorted(set(ranks)))


def histogram(pool: ModelPool, measure: Measure) -> torch.Tensor:
    """How many elements lie in each of the 2^15 bins of `bin_of`; int64."""
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for _, block in measure.blocks(pool):
        counts += torch.bincount(bin_of(block), minlength=_BINS)
    return counts


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Every magnitude, largest first, and where it stands."""

    magnitudes: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int32]

    def __call__(self, pool: ModelPool, measure: Measure, ranks: Sequence[int]) -> dict[int, Rank]:
        return {
            rank: Rank(magnitude=float(self.magnitudes[rank - 1]), index=int(self.indices[rank - 1])) for rank in ranks
        }


@dataclass(frozen=True, slots=True)
class _Runs:
    """Equal magnitudes, counted tile by tile; 12 bytes for each distinct magnitude of a tile.

    Attributes:
        magnitudes: descending.
        starts: index of the first element of their tile, ascending among equal magnitudes.
        upto: elements of this and all earlier runs.
    """

    magnitudes: npt.NDArray[np.float32]
    starts: npt.NDArray[np.unsignedinteger[Any]]
    upto: npt.NDArray[np.unsignedinteger[Any]]

    def __call__(self, pool: ModelPool, measure: Difference, ranks: Sequence[int]) -> dict[int, Rank]:
        return {rank: self._find(pool, measure, rank) for rank in ranks}

    def _find(self, pool: ModelPool, measure: Difference, rank: int) -> Rank:
        run = int(np.searchsorted(self.upto, self.upto.dtype.type(rank)))
        magnitude, start = float(self.magnitudes[run]), int(self.starts[run])
        place = rank - 1 - (int(self.upto[run - 1]) if run else 0)
        equal = measure.tile(pool, start).numpy() == magnitude
        return Rank(magnitude=magnitude, index=start + _nth(equal, place))


def _nth(flags: npt.NDArray[np.bool_], place: int) -> int:
    """Where the flag is that `place` others precede. Counting halves is five times as fast as listing them all."""
    start, stop = 0, len(flags)
    while stop - start > 1:
        middle = (start + stop) // 2
        before = int(np.count_nonzero(flags[start:middle]))
        if place < before:
            stop = middle
        else:
            start, place = middle, place - before
    return start


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Elements in each of the bins of `bin_of`."""

    held: npt.NDArray[np.unsignedinteger[Any]]

    def __call__(self, pool: ModelPool, measure: Measure, ranks: Sequence[int]) -> dict[int, Rank]:
        bins, places = _place(self.held, np.array(ranks))
        counts = {int(high): np.zeros(_BINS << 1, np.int64) for high in np.unique(bins)}
        for _, block in measure.blocks(pool):
            bits = block.view(torch.int32)
            for high, low in counts.items():
                np.add(low, torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=len(low)).numpy(), out=low)
        found = {}
        for rank, high, place in zip(ranks, bins.tolist(), places, strict=True):
            (below,), (rest,) = _place(counts[high], place[None])
            found[rank] = (float(np.array([high << 16 | int(below)], np.int32).view(np.float32)[0]), int(rest))
        indices = _find_equal(pool, measure, set(found.values()))
        return {rank: Rank(magnitude=at[0], index=indices[at]) for rank, at in found.items()}


def _place(counts: npt.NDArray[Any], ranks: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """In which bin some ranks are, counted from the last bin on, and their ranks in that bin."""
    upto = counts[::-1].cumsum(dtype=np.int64)
    at = np.searchsorted(upto, ranks)
    return len(counts) - 1 - at, ranks - upto[at] + counts[::-1][at].astype(np.int64)


def _find_equal(pool: ModelPool, measure: Measure, wanted: Set[tuple[float, int]]) -> dict[tuple[float, int], int]:
    """Where the n-th element of some magnitude is, for pairs of magnitude and n, counted from 1."""
    found: dict[tuple[float, int], int] = {}
    passed = dict.fromkeys((magnitude for magnitude, _ in wanted), 0)
    for start, block in measure.blocks(pool):
        for magnitude in {magnitude for magnitude, _ in wanted - found.keys()}:
            before, equal = passed[magnitude], block == magnitude
            passed[magnitude] += int(equal.count_nonzero())
            for at in wanted - found.keys():
                if at[0] == magnitude and at[1] <= passed[magnitude]:
                    found[at] = start + int(equal.nonzero()[at[1] - before - 1])
        if len(found) == len(wanted):
            break
    return found


_TABLES: Mapping[int, Callable[..., Any]] = {1: _Histogram, 2: _Sorted, 3: _Runs}
"""By the number of arrays that they consist of."""


def _table(pool: ModelPool, measure: Measure) -> prepared.Arrays:
    """The arrays of the smallest table there is."""
    if sum(pool.tensor(measure.models[0], name).numel() for name in measure.names) <= CHUNK:
        everything = torch.cat([block for _, block in measure.blocks(pool)])
        order = descending(everything[None])[0]
        return everything[order].numpy(), order.int().numpy()
    if isinstance(measure, Difference) and (runs := _runs(pool, measure)):
        return runs
    held = histogram(pool, measure).numpy()
    return (held.astype(np.min_scalar_type(held.max())),)


def _runs(pool: ModelPool, difference: Difference) -> prepared.Arrays | None:
    """None where magnitudes differ too much for a table to be small."""
    magnitudes, starts, counts = [], [], []
    elements = runs = 0
    for start, block in difference.blocks(pool):
        for offset in range(0, len(block), TILE):
            tile = -np.sort(-block[offset : offset + TILE].numpy())
            last = np.flatnonzero(np.append(tile[1:] != tile[:-1], True))
            magnitudes.append(tile[last])
            starts.append(np.full(len(last), start + offset))
            counts.append(np.diff(last, prepend=-1))
            elements, runs = elements + len(tile), runs + len(last)
            if runs > _FEW + elements // 32:
                return None
    found = np.concatenate(magnitudes)
    order = np.argsort(-found, kind="stable")
    upto = np.concatenate(counts)[order].cumsum()
    small = np.min_scalar_type(elements)
    return found[order], np.concatenate(starts)[order].astype(small), upto.astype(small)


def bin_of(magnitudes: torch.Tensor) -> torch.Tensor:
    """The bins of fp32 numbers that are not negative: the upper halves of their bit patterns, which order them."""
    return magnitudes.view(torch.int32) >> 16


def descending(magnitudes: torch.Tensor) -> torch.Tensor:
    """Columns of every row, largest magnitude first, equal ones in order.

    Integers that hold both sort in half the time of a stable sort.
    """
    keys = (0x7FFFFFFF - magnitudes.view(torch.int32).long()) << 32 | torch.arange(magnitudes.shape[1])
    keys.numpy().sort(axis=1)
    return keys & 0xFFFFFFFF
