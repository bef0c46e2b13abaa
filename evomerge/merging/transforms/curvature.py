"""Averages weighted element by element by a curvature of each expert's loss: Fisher merging, OTA. Knows single tensors.

Legend: `F_k`, `v_k` curvatures of the tensor's shape; K experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from evomerge.merging.transforms.deltas import Deltas
from evomerge.merging.transforms.order import order_statistics

__all__ = ["fisher", "ota"]

_FLOOR = 1e-8
"""Share of the mean Fisher information that every weight has at least."""

_EPSILON = 1e-26
"""What OTA adds to the root of second moments."""


def fisher(deltas: Deltas, information: Mapping[str, torch.Tensor]) -> Deltas:
    """`C_k = F_k tau_k / sum_j F_j`.

    (Fisher merging, Matena and Raffel 2022, whose weighted mean of weights is the base plus this sum.) Each
    `F_k` counts at least 1e-8 of their mean over the tensor and the experts: their own scale is that of the squared
    gradients, often below any fixed floor.
    """
    mean = torch.stack([own.double().mean() for own in information.values()]).mean()
    if mean == 0:
        return _weighted(deltas, {expert: torch.ones_like(delta) for expert, delta in deltas.items()})
    return _weighted(deltas, {expert: (own / mean).clamp(min=_FLOOR).float() for expert, own in information.items()})


def ota(deltas: Deltas, moments: Mapping[str, torch.Tensor], density: float) -> Deltas:
    """`C_k = w_k tau_k / sum_j w_j` with `w_k = (v_k^(1/2) + 1e-26) M_k`; zero where all are masked.

    The mask `M_k` keeps `round(density * n)` elements of the n of this tensor, at least one, where `v_k tau_k^2` is
    largest; equals of the last too, unchanged elements never. (OTA-Merging with Fast Fisher Grafting, Mahdavi et al.
    2025; details from the authors' code.)
    """
    weights = {}
    for expert, delta in deltas.items():
        scores = moments[expert] * delta**2
        weights[expert] = (moments[expert].sqrt() + _EPSILON) * ((scores >= _cut(scores, density)) & (scores > 0))
    return _weighted(deltas, weights)


def _cut(scores: torch.Tensor, density: float) -> torch.Tensor:
    """The least of the largest."""
    kept = max(1, round(density * scores.numel()))
    return order_statistics(lambda: iter([scores.reshape(1, -1)]), [scores.numel() - kept])[0, 0]


def _weighted(deltas: Deltas, weights: Mapping[str, torch.Tensor]) -> Deltas:
    total = torch.zeros_like(next(iter(deltas.values())))
    for weight in weights.values():
        total += weight
    total[total == 0] = 1.0
    return {expert: delta * (weights[expert] / total) for expert, delta in deltas.items()}
