"""PCB-Merging: experts compete for every weight of the whole model. Knows nothing of what single tensors are.

Legend: `x_k` task vector of expert k of K, flattened over all weights of the model, n in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from evomerge.merging.statistics import chunks
from evomerge.merging.transforms.deltas import Deltas
from evomerge.merging.transforms.order import order_statistics

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool

__all__ = ["Competition"]

_OUTLIERS = 1e-4
"""Share of the magnitudes at either end that are clamped to the next."""

_LEAST = 1e-12
"""Smallest sum of scores that is divided by."""

_CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Competition:
    """What parameter competition balancing must know of the whole model; then each element stands for itself.

    `y_k` is `x_k` with its magnitude clamped to its quantiles of 0.01 % and 99.99 %, `a_k` that magnitude scaled to
    [0, 1] over the model, `s_k = exp(K a_k^2) tanh(x_k sum_j x_j)` the score; `b_k` is the score clamped from below to
    its quantile of `1 - ratio` and scaled to [0, 1]. Then `C_k = b_k y_k / max(sum_j b_j, 1e-12)`. (PCB-Merging, Du et
    al. 2024; order of clamping and ranks from the authors' code.)

    Quantiles are exact order statistics over all weights, found by counting: two passes over the models for the
    magnitudes, two for the scores, none of which holds more than a chunk of each model and 2^16 counts.

    Attributes:
        magnitudes: `[K, 2]`, least and largest `|y_k|`.
        scores: `[K, 2]`, least and largest score, clamped.
    """

    magnitudes: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def of(cls, pool: ModelPool, names: tuple[str, ...], ratio: float) -> Competition:
        """Let the experts of a pool compete for the weights of some tensors.

        Args:
            pool: the models.
            names: of the tensors.
            ratio: share of the weights that each expert keeps.
        """
        n = sum(pool.tensor(pool.base, name).numel() for name in names)
        ends = [int(n * _OUTLIERS), int(n * (1 - _OUTLIERS) - 1)]
        magnitudes = order_statistics(lambda: (x.abs() for x in _chunks(pool, names)), ends)
        best = [min(int(n * (1 - ratio)), n - 1), n - 1]
        scores = order_statistics(lambda: (_scores(x, magnitudes) for x in _chunks(pool, names)), best)
        return cls(magnitudes=magnitudes, scores=scores)

    def apply(self, deltas: Deltas) -> Deltas:
        """The weights that each expert wins, of one tensor."""
        shares = {expert: torch.empty_like(delta).reshape(-1) for expert, delta in deltas.items()}
        rows = [delta.reshape(-1) for delta in deltas.values()]
        for start in range(0, len(rows[0]), _CHUNK):
            won = self._won(torch.stack([row[start : start + _CHUNK] for row in rows]))
            for share, own in zip(shares.values(), won, strict=True):
                share[start : start + _CHUNK] = own
        return {expert: share.reshape(deltas[expert].shape) for expert, share in shares.items()}

    def _won(self, x: torch.Tensor) -> torch.Tensor:
        balance = _scaled(_scores(x, self.magnitudes), self.scores)
        return x.sign() * _clamped(x.abs(), self.magnitudes) * balance / balance.sum(0).clamp(min=_LEAST)


def _scores(x: torch.Tensor, magnitudes: torch.Tensor) -> torch.Tensor:
    """Scores over `exp(K)`, which their scaling takes out again, so that many experts overflow nothing."""
    own = _scaled(x.abs(), magnitudes) ** 2
    return torch.exp(len(x) * (own - 1)) * torch.tanh(x * x.sum(0))


def _clamped(values: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch.clamp(values, ends[:, :1], ends[:, 1:])


def _scaled(values: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Clamped, then scaled to [0, 1]; zero where there is but one value."""
    low, high = ends[:, :1], ends[:, 1:]
    return (_clamped(values, ends) - low) / torch.where(high > low, high - low, 1.0)


def _chunks(pool: ModelPool, names: tuple[str, ...]) -> Iterator[torch.Tensor]:
    """The task vectors, `[K, elements]` at a time."""
    for name in names:
        parts = (chunks(pool, model, name) for model in (pool.base, *pool.experts))
        for base, *experts in zip(*parts, strict=True):
            yield torch.stack([expert.float() - base.float() for expert in experts])
