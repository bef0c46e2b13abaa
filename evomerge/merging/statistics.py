"""Candidate-independent facts about a pool, computed once and kept: scalar products and order statistics.

They make a new angle or density a look-up instead of a pass or a sort. Reductions run over chunks of fixed size, so a
fact never depends on how an executor splits its work. Knows nothing of operators or recipes.

Legend: `x = theta_source - theta_base`, formed in fp32, flattened; several tensors are taken one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from evomerge.merging import masks
from evomerge.merging.plan import Drop

if TYPE_CHECKING:
    import numpy.typing as npt

    from evomerge.merging.pool import ModelPool

__all__ = ["Difference", "Gram", "Rank", "gram", "kept_l1", "l1", "ranked"]

_CHUNK = 1 << 18
"""Elements read at a time. As many are kept sorted (2 MB); of more, only a histogram is kept (0.5 MB at most)."""

_BINS = 1 << 15
"""Upper halves of the bit patterns of magnitudes."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The differences `x` of some tensors between two models of a pool."""

    base: str
    source: str
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gram:
    """Scalar products of two tensors, in fp64."""

    aa: float
    ab: float
    bb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """The element that holds some rank by magnitude; equal magnitudes rank by index, lowest first."""

    magnitude: float
    index: int


def gram(pool: ModelPool, a: str, b: str, name: str) -> Gram:
    """Scalar products of one tensor of models `a` and `b`."""
    return _once(pool, ("gram", a, b, name), lambda: _gram(pool, a, b, name))


def l1(pool: ModelPool, difference: Difference) -> float:
    """Sum of the magnitudes, in fp64."""
    return _once(pool, ("l1", difference), lambda: sum(_sum(block) for _, block in _magnitudes(pool, difference)))


def kept_l1(pool: ModelPool, difference: Difference, drop: Drop) -> float:
    """Sum of the magnitudes that a random mask keeps, in fp64."""
    return sum(
        _sum(block.mul_(masks.keep(drop.seed, drop.density, start, len(block))))
        for start, block in _magnitudes(pool, difference)
    )


def ranked(pool: ModelPool, difference: Difference, ranks: Iterable[int]) -> dict[int, Rank]:
    """The elements of some ranks, 1 being the largest magnitude.

    Up to 2^18 elements this is a look-up in a sorted table. Beyond, a histogram tells each rank's bin, and one pass
    over the weights sorts the elements of those bins only; the answer is exact either way.

    Args:
        pool: the models.
        difference: the differences.
        ranks: each at least 1 and at most the number of elements.
    """
    table = _once(pool, ("ranks", difference), lambda: _table(pool, difference))
    return table(pool, difference, sorted(set(ranks)))


def _once(pool: ModelPool, key: Hashable, make: Callable[[], T]) -> T:
    facts = _facts(pool.digest)
    if key not in facts:
        facts[key] = make()
    return cast("T", facts[key])


@lru_cache(maxsize=2)
def _facts(digest: str) -> dict[Hashable, Any]:
    return {}


def _gram(pool: ModelPool, a: str, b: str, name: str) -> Gram:
    pairs = zip(_chunks(pool, a, name), _chunks(pool, b, name), strict=True)
    sums = [(float(x @ x), float(x @ y), float(y @ y)) for x, y in ((x.double(), y.double()) for x, y in pairs)]
    aa, ab, bb = (sum(column) for column in zip(*sums, strict=True))
    return Gram(aa=aa, ab=ab, bb=bb)


def _chunks(pool: ModelPool, model: str, name: str) -> Iterator[torch.Tensor]:
    yield from pool.tensor(model, name).reshape(-1).split(_CHUNK)  # type: ignore[no-untyped-call]


def _magnitudes(pool: ModelPool, difference: Difference) -> Iterator[tuple[int, torch.Tensor]]:
    """Pairs of the first element's index and `|x|` of a chunk."""
    start = 0
    for name in difference.names:
        pairs = zip(_chunks(pool, difference.source, name), _chunks(pool, difference.base, name), strict=True)
        for source, base in pairs:
            yield start, (source.float() - base.float()).abs_()
            start += len(base)


def _sum(block: torch.Tensor) -> float:
    return float(block.sum(dtype=torch.float64))


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Every magnitude, largest first, and where it stands."""

    magnitudes: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int32]

    def __call__(self, pool: ModelPool, difference: Difference, ranks: Sequence[int]) -> dict[int, Rank]:
        return {
            rank: Rank(magnitude=float(self.magnitudes[rank - 1]), index=int(self.indices[rank - 1])) for rank in ranks
        }


@dataclass(frozen=True, slots=True)
class _Histogram:
    """Bins of the upper half of an fp32 bit pattern, which orders magnitudes; only bins that hold elements.

    Attributes:
        bins: descending.
        held: elements in each bin.
    """

    bins: torch.Tensor
    held: torch.Tensor

    def __call__(self, pool: ModelPool, difference: Difference, ranks: Sequence[int]) -> dict[int, Rank]:
        upto = self.held.cumsum(0)
        places = torch.searchsorted(upto, torch.tensor(ranks))  # the first bin that, with all above it, holds the rank
        wanted = torch.unique(places)
        magnitudes, indices = _collect(pool, difference, self.bins[wanted])
        # Elements above the rank's bin that were not collected shift its place among those that were.
        collected_upto = torch.zeros_like(upto).index_copy(0, wanted, self.held[wanted]).cumsum(0)
        at = torch.tensor(ranks) - 1 - (upto - collected_upto)[places]
        return {
            rank: Rank(magnitude=float(magnitudes[i]), index=int(indices[i]))
            for rank, i in zip(ranks, at.tolist(), strict=True)
        }


def _table(pool: ModelPool, difference: Difference) -> _Sorted | _Histogram:
    if sum(pool.tensor(difference.base, name).numel() for name in difference.names) <= _CHUNK:
        everything = torch.cat([block for _, block in _magnitudes(pool, difference)])
        magnitudes, indices = _descending(everything, torch.arange(len(everything), dtype=torch.int32))
        return _Sorted(magnitudes.numpy(), indices.numpy())
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for _, block in _magnitudes(pool, difference):
        counts += torch.bincount(_bins(block), minlength=_BINS)
    bins = counts.nonzero().squeeze(1).flip(0)
    return _Histogram(bins, counts[bins])


def _collect(pool: ModelPool, difference: Difference, bins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Magnitudes that lie in some bins, largest first, and their indices."""
    wanted = torch.zeros(_BINS, dtype=torch.bool).index_fill(0, bins, True)
    parts = []
    for start, block in _magnitudes(pool, difference):
        indices = wanted[_bins(block)].nonzero().squeeze(1)
        parts.append((block[indices], indices + start))
    return _descending(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _bins(magnitudes: torch.Tensor) -> torch.Tensor:
    return magnitudes.view(torch.int32) >> 16


def _descending(magnitudes: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.argsort(magnitudes, descending=True, stable=True)
    return magnitudes[order], indices[order]
