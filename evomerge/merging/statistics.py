"""Candidate-independent facts about a pool, computed once and kept: sums and order statistics.

They make a new density a look-up instead of a pass or a sort. Reductions run over chunks of fixed size, so a
fact never depends on how an executor splits its work. Knows nothing of operators or recipes.

Legend: `x = theta_source - theta_base`, formed in fp32, flattened; several tensors are taken one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import torch

from evomerge.merging import masks
from evomerge.merging.keep_rules import Drop

if TYPE_CHECKING:
    import numpy.typing as npt

    from evomerge.merging.pool import ModelPool

__all__ = ["CHUNK", "Difference", "Measure", "Rank", "bin_of", "chunks", "histogram", "kept_l1", "l1", "once", "ranked"]

CHUNK = 1 << 18
"""Elements read at a time. As many are kept sorted (2 MB); of more, only tables of counts are kept."""

_TILE = 1 << 16
"""Elements whose equal magnitudes are counted together; a part of a chunk."""

_BINS = 1 << 15
"""Upper halves of the bit patterns of magnitudes."""

T = TypeVar("T")


class Measure(Protocol):
    """A number that is never negative, at every element of some tensors; hashable, so that facts about it are kept."""

    @property
    def base(self) -> str:
        """The model whose tensors they are."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, one after the other."""

    def __hash__(self) -> int:
        """Equal measures of one pool have equal values."""

    def blocks(self, pool: ModelPool) -> Iterator[tuple[int, torch.Tensor]]:
        """Pairs of the first element's index and fp32 values, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The differences `x` of some tensors between two models of a pool; as a measure, their magnitudes."""

    base: str
    source: str
    names: tuple[str, ...]

    def blocks(self, pool: ModelPool) -> Iterator[tuple[int, torch.Tensor]]:
        """Pairs of the first element's index and `|x|`."""
        start = 0
        for name in self.names:
            for source, base in zip(chunks(pool, self.source, name), chunks(pool, self.base, name), strict=True):
                yield start, (source.float() - base.float()).abs_()
                start += len(base)

    def tile(self, pool: ModelPool, start: int) -> torch.Tensor:
        """`|x|` of the elements from `start` on, at most `_TILE` and of one tensor."""
        sizes = (pool.tensor(self.base, name).numel() for name in self.names)
        for name, size in zip(self.names, sizes, strict=True):
            if start < size:
                source, base = (pool.tensor(m, name).reshape(-1)[start:][:_TILE] for m in (self.source, self.base))
                return (source.float() - base.float()).abs_()
            start -= size
        raise IndexError(f"element {start} after the last")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """The element that holds some rank by magnitude; equal magnitudes rank by index, lowest first."""

    magnitude: float
    index: int


def l1(pool: ModelPool, difference: Difference) -> float:
    """Sum of the magnitudes, in fp64."""
    return once(pool, ("l1", difference), lambda: sum(_sum(block) for _, block in difference.blocks(pool)))


def kept_l1(pool: ModelPool, difference: Difference, drop: Drop) -> float:
    """Sum of the magnitudes that a random mask keeps, in fp64."""
    return sum(
        _sum(block.mul_(masks.keep(drop.seed, drop.density, start, len(block))))
        for start, block in difference.blocks(pool)
    )


def ranked(pool: ModelPool, measure: Measure, ranks: Iterable[int]) -> dict[int, Rank]:
    """The elements of some ranks, 1 being the largest magnitude.

    Up to 2^18 elements this is a look-up in a sorted table, and beyond in a table of equal magnitudes, if they are few:
    16-bit weights differ by few distinct amounts. Else a histogram tells each rank's bin, and one pass over the weights
    sorts the elements of those bins only. The answer is exact each way.

    Args:
        pool: the models.
        measure: what to rank by.
        ranks: each at least 1 and at most the number of elements.
    """
    table = once(pool, ("ranks", measure), lambda: _table(pool, measure))
    return table(pool, measure, sorted(set(ranks)))


def histogram(pool: ModelPool, measure: Measure) -> torch.Tensor:
    """How many elements lie in each of the 2^15 bins of `bin_of`; int64."""
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for _, block in measure.blocks(pool):
        counts += torch.bincount(bin_of(block), minlength=_BINS)
    return counts


def once(pool: ModelPool, key: Hashable, make: Callable[[], T]) -> T:
    """A fact about a pool: made when first asked for, then kept in memory."""
    facts = _facts(pool.digest)
    if key not in facts:
        facts[key] = make()
    return cast("T", facts[key])


@lru_cache(maxsize=2)
def _facts(digest: str) -> dict[Hashable, Any]:
    return {}


def chunks(pool: ModelPool, model: str, name: str) -> Iterator[torch.Tensor]:
    """One tensor of one model, flattened, `CHUNK` elements at a time."""
    yield from pool.tensor(model, name).reshape(-1).split(CHUNK)  # type: ignore[no-untyped-call]


def _sum(block: torch.Tensor) -> float:
    return float(block.sum(dtype=torch.float64))


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
        return Rank(magnitude=magnitude, index=start + int(np.flatnonzero(equal)[place]))


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Bins of the upper half of an fp32 bit pattern, which orders magnitudes; only bins that hold elements.

    Attributes:
        bins: descending.
        held: elements in each bin.
    """

    bins: torch.Tensor
    held: torch.Tensor

    def __call__(self, pool: ModelPool, measure: Measure, ranks: Sequence[int]) -> dict[int, Rank]:
        upto = self.held.cumsum(0)
        places = torch.searchsorted(upto, torch.tensor(ranks))  # the first bin that, with all above it, holds the rank
        wanted = torch.unique(places)
        magnitudes, indices = _collect(pool, measure, self.bins[wanted])
        # Elements above the rank's bin that were not collected shift its place among those that were.
        collected_upto = torch.zeros_like(upto).index_copy(0, wanted, self.held[wanted]).cumsum(0)
        at = torch.tensor(ranks) - 1 - (upto - collected_upto)[places]
        return {
            rank: Rank(magnitude=float(magnitudes[i]), index=int(indices[i]))
            for rank, i in zip(ranks, at.tolist(), strict=True)
        }


def _table(pool: ModelPool, measure: Measure) -> Callable[[ModelPool, Any, Sequence[int]], dict[int, Rank]]:
    if sum(pool.tensor(measure.base, name).numel() for name in measure.names) <= CHUNK:
        everything = torch.cat([block for _, block in measure.blocks(pool)])
        magnitudes, indices = _descending(everything, torch.arange(len(everything), dtype=torch.int32))
        return _Sorted(magnitudes.numpy(), indices.numpy())
    if isinstance(measure, Difference) and (runs := _runs(pool, measure)):
        return runs
    counts = histogram(pool, measure)
    bins = counts.nonzero().squeeze(1).flip(0)
    return _Histogram(bins, counts[bins])


def _runs(pool: ModelPool, difference: Difference) -> _Runs | None:
    """None where magnitudes differ too much for a table to be small."""
    magnitudes, starts, counts = [], [], []
    elements = runs = 0
    for start, block in difference.blocks(pool):
        for offset in range(0, len(block), _TILE):
            tile = -np.sort(-block[offset : offset + _TILE].numpy())
            last = np.flatnonzero(np.append(tile[1:] != tile[:-1], True))
            magnitudes.append(tile[last])
            starts.append(np.full(len(last), start + offset))
            counts.append(np.diff(last, prepend=-1))
            elements, runs = elements + len(tile), runs + len(last)
            if runs > _TILE + elements // 8:
                return None
    found = np.concatenate(magnitudes)
    order = np.argsort(-found, kind="stable")
    upto = np.concatenate(counts)[order].cumsum()
    small = np.min_scalar_type(elements)
    return _Runs(found[order], np.concatenate(starts)[order].astype(small), upto.astype(small))


def _collect(pool: ModelPool, measure: Measure, bins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitudes that lie in some bins, largest first, and their indices."""
    wanted = torch.zeros(_BINS, dtype=torch.bool).index_fill(0, bins, True)
    parts = []
    for start, block in measure.blocks(pool):
        indices = wanted[bin_of(block)].nonzero().squeeze(1)
        parts.append((block[indices], indices + start))
    return _descending(*(torch.cat(column) for column in zip(*parts, strict=True)))


def bin_of(magnitudes: torch.Tensor) -> torch.Tensor:
    """The bins of fp32 numbers that are not negative: the upper halves of their bit patterns, which order them."""
    return magnitudes.view(torch.int32) >> 16


def _descending(magnitudes: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.argsort(magnitudes, descending=True, stable=True)
    return magnitudes[order], indices[order]
