"""RegMean and WUDI: one closed form. Knows single matrices, nothing of models.

Both ask for the change M `[out, in]` that disturbs no expert on its own inputs, `min sum_k tr((M - tau_k) G_k
(M - tau_k)^T)`, and differ in what they know of those inputs. The solution `M = sum_k tau_k G_k S^-1`, where
`S = sum_k G_k`, is a sum over experts: `C_k = tau_k G_k S^-1`.

Where S is singular, or its condition number is at least 1e8 (told by the diagonal of its Cholesky factor, which bounds
it from below), no expert's inputs have the directions of eigenvalues up to 1e-8 of the largest. There every M is as
good, and the average is taken: `C_k = tau_k (G_k S^+ + P / K)`, P the projection on them. It is the limit of adding a
vanishing multiple of the identity to every `G_k`. All in fp64.

Legend: `G_k` `[in, in]` symmetric, not negative; K experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from evomerge.merging.transforms.deltas import Deltas

__all__ = ["regmean", "wudi"]

_CONDITION = 1e8


def regmean(deltas: Deltas, grams: Mapping[str, torch.Tensor], factor: float) -> Deltas:
    """Regression mean: `G_k` is the Gram matrix of the inputs in calibration text, off its diagonal times the factor.

    Of weights, `sum_k theta_k G_k S^-1` is the base plus the same sum of task vectors, so working on task vectors
    changes nothing at weight 1. (RegMean, Jin et al. 2023.)
    """
    shrunk = {expert: _shrunk(gram.double(), factor) for expert, gram in grams.items()}
    products = {expert: delta.double() @ shrunk[expert] for expert, delta in deltas.items()}
    return _solved(deltas, products, torch.stack([*shrunk.values()]).sum(0))


def wudi(deltas: Deltas, ridge: float) -> Deltas:
    """Rows of a task vector stand for the inputs it was trained on: `G_k = tau_k^T tau_k / ||tau_k||_F^2 + r / K I`.

    The method takes steps of Adam on the same sum without the ridge r (WUDI-Merging, Cheng et al. 2025; that
    it equals this closed form is our own observation). The ridge, a share of the mean diagonal of S, draws M to the
    average where the task vectors say little, as stopping early from there does.
    """
    rows = {expert: _normalised(delta.double()) for expert, delta in deltas.items()}
    total = torch.stack([row.T @ row for row in rows.values()]).sum(0)
    every = ridge * float(total.diagonal().mean())
    total.diagonal().add_(every)
    products = {
        expert: torch.linalg.multi_dot([row, row.T, tau := deltas[expert].double()]) + every / len(rows) * tau
        for expert, row in rows.items()
    }
    return _solved(deltas, products, total)


def _shrunk(gram: torch.Tensor, factor: float) -> torch.Tensor:
    symmetric = (gram + gram.T) / 2  # sums of fp32 products may differ in their last bits
    return symmetric * factor + torch.diag(gram.diagonal() * (1 - factor))


def _normalised(tau: torch.Tensor) -> torch.Tensor:
    norm = tau.norm()
    return tau / norm if norm > 0 else tau


def _solved(deltas: Deltas, products: Deltas, total: torch.Tensor) -> Deltas:
    """`C_k` from `tau_k G_k` and S."""
    factor, info = torch.linalg.cholesky_ex(total)
    pivots = factor.diagonal() ** 2
    if int(info) == 0 and pivots.max() < _CONDITION * pivots.min():
        return {expert: torch.cholesky_solve(product.T, factor).T for expert, product in products.items()}
    squares, vectors = torch.linalg.eigh(total)
    seen = (squares > squares[-1] / _CONDITION) & (squares > 0)
    inverse = vectors * torch.where(seen, squares, torch.inf).reciprocal() @ vectors.T
    unseen = vectors * ~seen @ vectors.T / len(deltas)
    return {expert: product @ inverse + deltas[expert].double() @ unseen for expert, product in products.items()}
