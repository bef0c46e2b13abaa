"""Transforms by singular values: STAR, TSV-M, LoRE. Knows single matrices, nothing of models.

Singular vectors come from the eigenvectors of the smaller Gram matrix in fp64, which tells values apart down to 1e-8 of
the largest, as far as fp32 task vectors carry, in half the time of an fp32 SVD. Nothing is random.

Legend: `tau = U diag(S) V^T`, S descending; K experts; `[m, n]` the shape of a matrix, or of its transpose, `m <= n`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TypeAlias

import torch

from evomerge.merging.transforms.deltas import Deltas

__all__ = ["lore", "star", "tsv_m"]

_Transform: TypeAlias = Callable[[Deltas, float], Deltas]

_NEGLIGIBLE = 1e-6
"""Singular values at most this share of the largest have no direction of their own: rounding made it."""

_TURNS = 100
"""Of LoRE, at most; at its default threshold it takes about 20."""

_STEADY = 1e-3
"""A turn of LoRE that moves the common change by at most this share of its norm is the last."""

_SPARE = 8
"""Directions that LoRE follows beside those with singular values above half its threshold."""

_COARSE = 1e-3
"""Singular values at most this share of the largest drown in fp32 Gram matrices."""


def _short_side_first(transform: _Transform) -> _Transform:
    """The same for matrices of any shape: all three treat a matrix and its transpose alike."""

    @wraps(transform)
    def of_any(deltas: Deltas, number: float) -> Deltas:
        rows, columns = next(iter(deltas.values())).shape
        if rows <= columns:
            return transform(deltas, number)
        return _transposed(transform(_transposed(deltas), number))

    return of_any


def _transposed(deltas: Deltas) -> Deltas:
    return {expert: delta.T for expert, delta in deltas.items()}


@_short_side_first
def star(deltas: Deltas, percent: float) -> Deltas:
    """The leading singular values that hold a percentage of the nuclear norm, scaled to the whole norm.

    `C = (sum S / sum_{i<=r} S_i) U_r diag(S_r) V_r^T` with the smallest r such that `sum_{i<=r} S_i >= percent / 100 *
    sum S`; of each expert by itself. (STAR, Lee et al. 2025; its authors' code.)
    """
    return {expert: _star(delta, percent) for expert, delta in deltas.items()}


def _star(delta: torch.Tensor, percent: float) -> torch.Tensor:
    tau = delta.double()
    left, values = _left(tau)
    upto = values.cumsum(0)
    if upto[-1] == 0:
        return tau
    rank = 1 + int(torch.searchsorted(upto, upto[-1] * percent / 100).clamp(max=len(values) - 1))
    return left[:, :rank] @ (left[:, :rank].T @ tau) * (upto[-1] / upto[rank - 1])


@_short_side_first
def tsv_m(deltas: Deltas, share: float) -> Deltas:
    """Leading singular triplets of every expert, turned so that no two experts' directions overlap.

    Each expert keeps its first `r = floor(share * m / K)` triplets, at least one. The `U_k` of all, side by side,
    are replaced by the closest matrix with orthonormal columns (its polar factor), so are the `V_k`; then
    `C_k = U'_k diag(S_k) V'_k^T`. (TSV-Merge, Gargiulo et al. 2025.)

    Where directions of several experts coincide the polar factor is not unique; this one leaves out what they lack
    together, so equal experts give `C_k = tau_k / K`, cut to rank r, where an SVD would fill in arbitrary directions.
    """
    rank = max(1, int(share * len(next(iter(deltas.values()))) / len(deltas)))
    triplets = [_triplets(delta.double(), rank) for delta in deltas.values()]
    left, right = (_polar(torch.cat(sides, dim=1)) for sides in zip(*((u, v) for u, _, v in triplets), strict=True))
    return {
        expert: left[:, i * rank : (i + 1) * rank] * values @ right[:, i * rank : (i + 1) * rank].T
        for i, (expert, (_, values, _)) in enumerate(zip(deltas, triplets, strict=True))
    }


def _triplets(tau: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first singular triplets; a negligible one is zero, vectors too, so that it claims no direction."""
    left, values = (part[..., :rank] for part in _left(tau))
    weighty = values > _NEGLIGIBLE * values[0]
    right = tau.T @ left / torch.where(weighty, values, 1.0)
    return left * weighty, values * weighty, right * weighty


def _polar(columns: torch.Tensor) -> torch.Tensor:
    """`X (X^T X)^(-1/2)`, with the pseudo-inverse of the root."""
    squares, vectors = torch.linalg.eigh(columns.T @ columns)
    roots = torch.where(squares > _NEGLIGIBLE**2, squares, torch.inf).rsqrt()  # columns have length one
    turned: torch.Tensor = columns @ (vectors * roots) @ vectors.T
    return turned


@_short_side_first
def lore(deltas: Deltas, share: float) -> Deltas:
    """A common change and a low-rank change of each expert.

    Minimises `sum_k 1/2 ||m + D_k - tau_k||_F^2 + mu ||D_k||_*` by turns: `D_k` is `tau_k - m` with its singular values
    lowered by mu, and m the mean of all `tau_k - D_k`, accelerated (see `_common`). Then `C_k = D_k + m / K`, whose sum
    is the method's merge `m + sum_k D_k`. Here mu is a share of the largest singular value of any `tau_k - mean(tau)`;
    a share of 1 gives the average. (LoRE-Merging, Liu et al. 2025; the formula is from secondary sources. The paper
    knows no base: it estimates `theta_0 + m` where we have m.)
    """
    taus = torch.stack([delta.double() for delta in deltas.values()])
    mean = taus.mean(0)
    parts = [_left(tau - mean) for tau in taus]
    threshold = share * max(float(values[0]) for _, values in parts)
    start = _near(taus, mean, parts, threshold)
    common, own = _descended(taus, start, lambda changes: torch.stack([_lowered(c, threshold) for c in changes]))
    return {expert: change + common / len(taus) for expert, change in zip(deltas, own, strict=True)}


def _descended(
    taus: torch.Tensor, start: torch.Tensor, lowered: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The m and the D of `lore`, from some m on.

    A turn is a step of gradient descent on what is left of the objective when every `D_k` is at its best; so momentum
    (Nesterov 1983), given up where it leads astray (O'Donoghue and Candes 2015), saves most of the turns.
    """
    common = ahead = start
    pace = 1.0
    for _ in range(_TURNS):
        own = lowered(taus - ahead)
        found = (taus - own).mean(0)
        moved = found - common
        pace = 1.0 if ((ahead - found) * moved).sum() > 0 else pace
        pace, before = (1 + math.sqrt(1 + 4 * pace**2)) / 2, pace
        ahead, common = found + (before - 1) / pace * moved, found
        if moved.norm() <= _STEADY * found.norm():
            break
    return common, own


def _near(
    taus: torch.Tensor, mean: torch.Tensor, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], threshold: float
) -> torch.Tensor:
    """An m near to where LoRE ends, for a small part of the cost: found in fp32, among leading directions alone.

    Args:
        taus: `[K, m, n]`.
        mean: of them.
        parts: left singular vectors and singular values of every `tau_k - mean`.
        threshold: of `lore`.
    """
    if len(taus) < 3 or threshold <= _COARSE * max(float(values[0]) for _, values in parts):
        return mean  # which is the end for two experts
    width = max(int((values > threshold / 2).sum()) for _, values in parts) + _SPARE
    followed = _Leading(torch.stack([left[:, :width] for left, _ in parts]).float())
    common, _ = _descended((taus / threshold).float(), (mean / threshold).float(), followed)
    return common.double() * threshold


class _Leading:
    """Lowers singular values by 1, of matrices that change little from call to call.

    The leading singular vectors of each are those of the last call, turned by one step of subspace iteration.

    Args:
        spans: to begin with, orthonormal columns, `[K, m, r]`.
    """

    def __init__(self, spans: torch.Tensor) -> None:
        self._spans = spans

    def __call__(self, matrices: torch.Tensor) -> torch.Tensor:
        """The matrices `[K, m, n]`, lowered."""
        self._spans = torch.linalg.qr(matrices @ (matrices.mT @ self._spans))[0]
        inside = self._spans.mT @ matrices
        squares, turns = torch.linalg.eigh(inside @ inside.mT)
        shares = _shares(squares.clamp(min=0).sqrt(), 1.0)
        lowered: torch.Tensor = self._spans @ ((turns * shares[:, None]) @ (turns.mT @ inside))
        return lowered


def _lowered(matrix: torch.Tensor, threshold: float) -> torch.Tensor:
    """The matrix with every singular value lowered by the threshold, to zero at the least."""
    left, values = _left(matrix)
    rank = int((values > threshold).sum())
    left, shares = left[:, :rank], _shares(values[:rank], threshold)
    lowered: torch.Tensor = left * shares @ (left.T @ matrix)
    return lowered


def _shares(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """What is left of singular values that are lowered by a threshold."""
    return (1 - threshold / torch.where(values > threshold, values, torch.inf)) * (values > threshold)


def _left(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Left singular vectors, in columns, and singular values of a matrix `[short, long]`, largest first."""
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors.flip(1), squares.flip(0).clamp(min=0).sqrt()
