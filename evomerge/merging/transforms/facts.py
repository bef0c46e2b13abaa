"""What a transform may ask about an expert beside its weights. Does not know where the answers come from."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch

__all__ = ["Curvature", "Facts"]

Curvature: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""One number that is not negative for each weight: a tensor of the weight's stored shape; or, for a linear map, a pair
`(row [out], column [in])` that stands for `row[i] * column[j]` at output i and input j. Who factors `F` by the sums of
its rows and columns (Adafactor, Shazeer and Stern 2018) divides one of them by the sum of all."""


class Facts(Protocol):
    """Facts about the experts of one pool, by pool name of the expert and name of the tensor; None where unknown."""

    def gram(self, model: str, tensor: str) -> torch.Tensor | None:
        """`X^T X` over the inputs X `[tokens, in]` of a linear map: fp32 `[in, in]`, however the weight is stored.

        Of one scale in all experts: over equally many tokens, or divided by them. `[maps, in, in]` where one tensor
        holds the maps of many MoE experts.
        """

    def fisher(self, model: str, tensor: str) -> Curvature | None:
        """The diagonal of the Fisher information: mean squared gradients of the log-likelihood."""

    def second_moments(self, model: str, tensor: str) -> Curvature | None:
        """Adam's `v` at the end of the expert's training."""
