"""Scalar products between models, tensor by tensor or slice by slice: all that spherical operators ask of the weights.

One pass over a pool's tensors, in fp64, kept: any later angle, norm or weight is then arithmetic on K x K
numbers. Tiles have a fixed size, so a product never depends on how an executor splits its work. Knows nothing of
operators or recipes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from evomerge.merging import prepared

if TYPE_CHECKING:
    import numpy.typing as npt

    from evomerge.merging.pool import ModelPool
    from evomerge.recipe import Role

__all__ = ["Slicing", "gram", "products_by_place", "run_of"]

Slicing = Literal["tensor", "row", "column"]
"""What has scalar products of its own: the whole tensor, each slice along the last axis, or each along the first."""

_TILE = 1 << 18
"""Elements of each model that are multiplied at a time."""


def gram(
    pool: ModelPool, models: tuple[str, ...], name: str, *, base: str | None = None, per: Slicing = "tensor"
) -> npt.NDArray[np.float64]:
    """Scalar products of one tensor of some models.

    Args:
        pool: the models.
        models: pool names of K models.
        name: the tensor.
        base: multiply the task vectors from this model (formed in fp32) instead of the weights.
        per: what to take the products of. Tensors of fewer than two axes are one slice.

    Returns:
        `[slices, K, K]`, read-only.
    """
    involved = models if base is None else (base, *models)
    kind = f"products of {'weights' if base is None else 'changes'} by {per}"
    (found,) = prepared.arrays(pool, kind, involved, (name,), lambda: (_gram(pool, models, name, base, per),))
    found.flags.writeable = False
    return found


def products_by_place(pool: ModelPool) -> tuple[tuple[Role, int | None, list[list[float]]], ...]:
    """Scalar products of the weights of all models, base first, summed over the tensors of a role in a layer.

    Returns:
        Module role, layer (None outside the layers) and `[K][K]`, for each pair that holds weights.
    """
    found: dict[tuple[Role, int | None], npt.NDArray[np.float64]] = {}
    for spec in pool.specs:
        place = spec.role, spec.layer
        found[place] = found.get(place, 0.0) + gram(pool, pool.names, spec.name)[0]
    return tuple((role, layer, products.tolist()) for (role, layer), products in found.items())


def run_of(shape: tuple[int, ...], per: Slicing) -> int:
    """How many elements in a row lie in one slice: element i of the flattened tensor is in `i // run % slices`."""
    if per == "column" and len(shape) > 1:
        return 1
    return math.prod(shape if per == "tensor" else shape[-1:])


def _gram(
    pool: ModelPool, models: tuple[str, ...], name: str, base: str | None, per: Slicing
) -> npt.NDArray[np.float64]:
    matrices = [_slices(pool.tensor(model, name), per) for model in models]
    origin = None if base is None else _slices(pool.tensor(base, name), per)
    height, width = matrices[0].shape
    products = torch.zeros(height, len(models), len(models), dtype=torch.float64)
    for tile in _tiles(height, width):
        vectors = torch.stack([_vectors(matrix, origin, tile) for matrix in matrices])
        products[tile[0]] += torch.einsum("ksn,lsn->skl", vectors, vectors)
    return products.numpy()


def _slices(values: torch.Tensor, per: Slicing) -> torch.Tensor:
    """A tensor as a matrix with one slice in each row."""
    if per == "tensor" or values.ndim < 2:
        return values.reshape(1, -1)
    return values.flatten(1).t() if per == "column" else values.flatten(0, -2)


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    across = max(min(width, _TILE), 1)
    down = _TILE // across
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield slice(top, min(top + down, height)), slice(left, min(left + across, width))


def _vectors(matrix: torch.Tensor, origin: torch.Tensor | None, tile: tuple[slice, slice]) -> torch.Tensor:
    values = matrix[tile]
    return values.double() if origin is None else (values.float() - origin[tile].float()).double()
