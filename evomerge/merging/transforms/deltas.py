"""Task vectors of one tensor, and the matrices in them. Knows nothing of what is done to either.

Legend: `tau_k = theta_k - theta_0`, the task vector of expert k of K, formed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from evomerge.merging.layout import stores_inputs_first

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec

__all__ = ["Deltas", "Step", "averaged", "by_matrix", "deltas_of", "inputs_first"]

Deltas: TypeAlias = dict[str, torch.Tensor]
"""A change of one tensor for each expert, by pool name; fp32 unless said otherwise."""

Step: TypeAlias = "Callable[[TensorSpec, Deltas], Deltas]"
"""What a transform makes of the task vectors of one tensor."""


def deltas_of(pool: ModelPool, spec: TensorSpec) -> Deltas:
    """The task vectors of one tensor."""
    base = pool.tensor(pool.base, spec.name).float()
    return {expert: pool.tensor(expert, spec.name).float() - base for expert in pool.experts}


def averaged(deltas: Deltas) -> Deltas:
    """`tau_k / K`: together, at weight 1, their average."""
    return {expert: delta / len(deltas) for expert, delta in deltas.items()}


def inputs_first(pool: ModelPool, spec: TensorSpec) -> bool:
    """Whether a matrix is stored as `[in, out]`."""
    return stores_inputs_first(spec.name, len(spec.shape), str(pool.config.get("model_type")))


def by_matrix(pool: ModelPool, spec: TensorSpec, deltas: Deltas, make: Callable[[int, Deltas], Deltas]) -> Deltas:
    """Transform the matrices of a tensor one by one.

    Args:
        pool: whose architecture tells which axis is the inputs'.
        spec: a tensor that `is_matrix`.
        deltas: its task vectors.
        make: takes the place of a matrix in the tensor, and its task vectors `[out, in]`; gives as many of that shape.
    """
    flip = inputs_first(pool, spec)
    stacks = {expert: _flipped(delta.reshape(-1, *spec.shape[-2:]), flip) for expert, delta in deltas.items()}
    maps = len(next(iter(stacks.values())))
    made = [make(i, {expert: stack[i] for expert, stack in stacks.items()}) for i in range(maps)]
    return {
        expert: _flipped(torch.stack([matrices[expert].float() for matrices in made]), flip)
        .reshape(spec.shape)
        .contiguous()
        for expert in deltas
    }


def _flipped(stack: torch.Tensor, flip: bool) -> torch.Tensor:
    return stack.mT if flip else stack
