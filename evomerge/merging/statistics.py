"""Candidate-independent facts about a pool, computed once and kept: what is measured, sums and largest values.

Order statistics are in `rank_tables`. Reductions run over chunks of fixed size, so a
fact never depends on how an executor splits its work. Knows nothing of operators or recipes.

Legend: `x = theta_source - theta_base`, formed in fp32, flattened; several tensors are taken one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from evomerge.merging import prepared

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool

__all__ = [
    "CHUNK",
    "TILE",
    "Difference",
    "Measure",
    "chunks",
    "facts",
    "l1",
    "largest",
    "numbers",
]

CHUNK = 1 << 18
"""Elements read at a time. As many are kept sorted (2 MB); of more, only tables of counts are kept."""

TILE = 1 << 16
"""Elements whose equal magnitudes are counted together; a part of a chunk."""


class Measure(Protocol):
    """A number that is never negative, at every element of some tensors; its type, models and tensors determine it."""

    @property
    def models(self) -> tuple[str, ...]:
        """All that it compares, by pool names."""

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, one after the other."""

    def blocks(self, pool: ModelPool) -> Iterator[tuple[int, torch.Tensor]]:
        """Pairs of the first element's index and fp32 values, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The differences `x` of some tensors between two models of a pool; as a measure, their magnitudes."""

    base: str
    source: str
    names: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Base and source."""
        return self.base, self.source

    def blocks(self, pool: ModelPool) -> Iterator[tuple[int, torch.Tensor]]:
        """Pairs of the first element's index and `|x|`."""
        start = 0
        for name in self.names:
            for source, base in zip(chunks(pool, self.source, name), chunks(pool, self.base, name), strict=True):
                yield start, (source.float() - base.float()).abs_()
                start += len(base)

    def tile(self, pool: ModelPool, start: int) -> torch.Tensor:
        """`|x|` of the elements from `start` on, at most `TILE` and of one tensor."""
        for name in self.names:
            base = pool.tensor(self.base, name)
            if start < base.numel():
                source = pool.tensor(self.source, name)
                here, there = (theta.reshape(-1)[start : start + TILE].float() for theta in (source, base))
                return (here - there).abs_()
            start -= base.numel()
        raise IndexError(f"element {start} after the last")


def l1(pool: ModelPool, difference: Difference) -> float:
    """Sum of the magnitudes, in fp64."""
    return _sum_and_largest(pool, difference)[0]


def largest(pool: ModelPool, difference: Difference) -> float:
    """The largest magnitude."""
    return _sum_and_largest(pool, difference)[1]


def _sum_and_largest(pool: ModelPool, difference: Difference) -> list[float]:
    def make() -> list[float]:
        rows = [(float(block.sum(dtype=torch.float64)), float(block.max())) for _, block in difference.blocks(pool)]
        sums, peaks = zip(*rows, strict=True)
        return [sum(sums), max(peaks)]

    return numbers(pool, "sum and largest", difference, make)


def numbers(pool: ModelPool, kind: str, measure: Measure, make: Callable[[], Sequence[float]]) -> list[float]:
    """A few numbers about a measure, computed once."""
    found: list[float] = facts(pool, kind, measure, lambda: (np.array(make(), dtype=np.float64),))[0].tolist()
    return found


def facts(pool: ModelPool, kind: str, measure: Measure, make: Callable[[], prepared.Arrays]) -> prepared.Arrays:
    """Arrays about a measure, computed once."""
    return prepared.arrays(pool, f"{kind} of {type(measure).__name__}", measure.models, measure.names, make)


def chunks(pool: ModelPool, model: str, name: str) -> Iterator[torch.Tensor]:
    """One tensor of one model, flattened, `CHUNK` elements at a time."""
    yield from pool.tensor(model, name).reshape(-1).split(CHUNK)  # type: ignore[no-untyped-call]
