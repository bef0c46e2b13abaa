"""Random masks without storage: a uniform number for every (seed, element), from a counter-based hash.

The number of an element depends on nothing but the seed and the element's place in its unsharded tensor, so a mask is
the same in any block size, in any order, on any device and after a resume. Knows nothing of recipes or models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from evomerge.rng import derive_seed

__all__ = ["keep", "keep_by_level", "tensor_seed", "uniform"]

# SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), constants as signed 64-bit.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def tensor_seed(mask_seed: int, source: str, tensor: str) -> int:
    """The seed of one source's mask over one tensor; different sources and tensors are independent."""
    return derive_seed(mask_seed, "mask", source, tensor)


def uniform(seed: int, start: int, count: int) -> torch.Tensor:
    """Numbers in [0, 1) of the elements `start .. start + count - 1`.

    Args:
        seed: from `tensor_seed`; at most 63 bits.
        start: index of the first element in the flattened tensor.
        count: number of elements.

    Returns:
        fp64, shape `(count,)`, multiples of 2^-32.
    """
    return _hash(seed, start, count).double().mul_(2.0**-32).add_(0.5)


def keep(seed: int, density: float, start: int, count: int) -> torch.Tensor:
    """Which elements a mask of some density keeps: those whose `uniform` lies below the density.

    Args:
        seed: from `tensor_seed`.
        density: in [0, 1); finer than 2^-32 makes no difference.
        start: index of the first element in the flattened tensor.
        count: number of elements.

    Returns:
        bool, shape `(count,)`.
    """
    return _hash(seed, start, count) < min(_cut(density), 2**31 - 1)  # the largest that 32 bits hold


def keep_by_level(seed: int, densities: Sequence[float], levels: torch.Tensor, start: int) -> torch.Tensor:
    """Which elements a mask keeps whose density differs from element to element.

    Args:
        seed: from `tensor_seed`.
        densities: of every level, each in [0, 1].
        levels: of the elements, int32, shape `(count,)`.
        start: index of the first element in the flattened tensor.

    Returns:
        bool, shape `(count,)`.
    """
    cuts = torch.tensor([_cut(density) for density in densities])
    return _hash(seed, start, len(levels)) < cuts.index_select(0, levels)


def _cut(density: float) -> int:
    """The hash from which on elements are dropped."""
    return math.ceil(density * 2.0**32) - 2**31


def _hash(seed: int, start: int, count: int) -> torch.Tensor:
    """Signed 32-bit integers, uniform; elements 2 j and 2 j + 1 are the lower and upper half of the j-th hash."""
    first, last = start // 2, (start + count + 1) // 2
    z = torch.arange(first + 1, last + 1).mul_(_GAMMA).add_(seed)
    z.bitwise_xor_(_shifted(z, 30)).mul_(_MIX_1)
    z.bitwise_xor_(_shifted(z, 27)).mul_(_MIX_2)
    z.bitwise_xor_(_shifted(z, 31))
    return z.view(torch.int32)[start - 2 * first :][:count]


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)
