"""What deciding between changes asks of whole tensors: variance over sources, importance, energies, overlaps.

All that does not depend on a candidate is kept. Knows nothing of operators or recipes.

Legend: `x_k = theta_k - theta_0`, formed in fp32, flattened; K sources; n elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from evomerge.merging import prepared, statistics
from evomerge.merging.keep_rules import Trim
from evomerge.merging.keeps import trim
from evomerge.merging.statistics import CHUNK, chunks

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool

__all__ = [
    "Changes",
    "Importance",
    "Overlaps",
    "Variance",
    "divergences",
    "energies",
    "nonzero",
    "overlaps",
    "variance",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """One tensor's differences between several sources and the base."""

    base: str
    sources: tuple[str, ...]
    name: str

    @property
    def models(self) -> tuple[str, ...]:
        """Base and sources."""
        return self.base, *self.sources

    def blocks(self, pool: ModelPool) -> Iterator[tuple[int, torch.Tensor]]:
        """Pairs of the first element's index and all `x_k` of a run of elements, fp32, `[K, n]`."""
        start = 0
        streams = zip(*(chunks(pool, model, self.name) for model in self.models), strict=True)
        for base, *thetas in streams:
            yield start, torch.stack([theta.float() for theta in thetas]).sub_(base.float())
            start += len(base)


@dataclass(frozen=True, slots=True)
class Variance:
    """A measure: the variance over sources."""

    changes: Changes

    @property
    def models(self) -> tuple[str, ...]:
        """Base and sources."""
        return self.changes.models

    @property
    def names(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.changes.name,)

    def blocks(self, pool: ModelPool) -> Iterator[tuple[int, torch.Tensor]]:
        """Pairs of the first element's index and variances."""
        for start, x in self.changes.blocks(pool):
            yield start, variance(x, torch.empty_like(x), torch.empty_like(x[0]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """A measure: `|x|` times its row's divergence."""

    base: str
    source: str
    name: str

    @property
    def models(self) -> tuple[str, ...]:
        """Base and source."""
        return self.base, self.source

    @property
    def names(self) -> tuple[str, ...]:
        """The one tensor."""
        return (self.name,)

    def blocks(self, pool: ModelPool) -> Iterator[tuple[int, torch.Tensor]]:
        """Pairs of the first element's index and importances."""
        rows = divergences(pool, self.base, self.source, self.name)
        columns = pool.tensor(self.base, self.name).numel() // len(rows)
        difference = statistics.Difference(base=self.base, source=self.source, names=self.names)
        for start, block in difference.blocks(pool):
            yield start, block.mul_(rows[torch.arange(start, start + len(block)) // columns])


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlaps:
    """How many elements each source changes alone, and how many with others."""

    unique: tuple[int, ...]
    common: tuple[int, ...]


def variance(x: torch.Tensor, spare: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Population variance over sources, in fp32, strictly in order; exactly 0 where all are equal.

    Args:
        x: `[K, n]`.
        spare: overwritten, of the same shape.
        out: `[n]`.
    """
    torch.sub(x, x[0], out=spare)
    spare.sub_(_mean(spare, out)).square_()
    return _mean(spare, out)


def nonzero(pool: ModelPool, measure: statistics.Measure) -> int:
    """How many elements are not 0."""
    (count,) = statistics.numbers(
        pool, "nonzero", measure, lambda: [sum(int(block.count_nonzero()) for _, block in measure.blocks(pool))]
    )
    return int(count)


def energies(pool: ModelPool, changes: Changes, select: Trim | None) -> tuple[float, ...]:
    """Sum of squares of every source's changes where their variance is selected, in fp64; None selects all."""
    if select is None:
        found = prepared.arrays(
            pool, "energies", changes.models, (changes.name,), lambda: (np.array(_energies(pool, changes, None)),)
        )
        return tuple(found[0].tolist())
    return _energies(pool, changes, select)


def overlaps(pool: ModelPool, changes: Changes, epsilon: float) -> Overlaps:
    """Counts of elements where `|x_k| > epsilon`, an fp32 value."""
    unique, common = torch.zeros(2, len(changes.sources), dtype=torch.int64)
    for _, x in changes.blocks(pool):
        active = x.abs_() > epsilon
        alone = active.sum(0) == 1
        unique += (active & alone).sum(1)
        common += (active & ~alone).sum(1)
    return Overlaps(unique=tuple(unique.tolist()), common=tuple(common.tolist()))


def divergences(pool: ModelPool, base: str, source: str, name: str) -> torch.Tensor:
    """Kullback-Leibler divergence of every row's softmax in the source from that in the base.

    Returns:
        fp32, computed in fp64, of shape `[rows]`; a row is a run of the last axis.
    """
    found = prepared.arrays(
        pool, "divergences", (base, source), (name,), lambda: (_divergences(pool, base, source, name).numpy(),)
    )
    return torch.from_numpy(found[0])


def _mean(rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    out.copy_(rows[0])
    for row in rows[1:]:
        out.add_(row)
    return out.div_(len(rows))


def _energies(pool: ModelPool, changes: Changes, select: Trim | None) -> tuple[float, ...]:
    totals = torch.zeros(len(changes.sources), dtype=torch.float64)
    for start, x in changes.blocks(pool):
        if select is not None:
            spread = variance(x, torch.empty_like(x), torch.empty_like(x[0]))
            trim(select, start, spread)
            x.mul_(spread != 0)
        totals += x.double().square_().sum(1)
    return tuple(totals.tolist())


def _divergences(pool: ModelPool, base: str, source: str, name: str) -> torch.Tensor:
    theta, theta_0 = (_rows(pool.tensor(model, name)) for model in (source, base))
    size = max(CHUNK // theta.shape[1], 1)
    tops = range(0, len(theta), size)
    return torch.cat([_divergence(theta[top : top + size], theta_0[top : top + size]) for top in tops]).float()


def _rows(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, values.shape[-1] if values.ndim else 1)


def _divergence(theta: torch.Tensor, theta_0: torch.Tensor) -> torch.Tensor:
    log_p, log_q = (values.double().log_softmax(1) for values in (theta, theta_0))
    return (log_p.exp() * (log_p - log_q)).sum(1).clamp_(min=0)
