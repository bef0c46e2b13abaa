"""Random masks without storage: a uniform number for every (seed, element), from a counter-based hash.

The number of an element depends on nothing but the seed and the element's place in its unsharded tensor, so a mask is
the same in any block size, in any order, on any device and after a resume. Knows nothing of recipes or models.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from evomerge.recipe.transform_table import VARIANT_MARK
from evomerge.rng import derive_seed

__all__ = [
    "FINEST",
    "STEPS",
    "bins",
    "inverses",
    "keep",
    "keep_by_level",
    "kept_by_word",
    "level_limits",
    "limit",
    "ramp",
    "tensor_seed",
    "uniform",
    "word",
]

STEPS = 10_000
"""Densities of masks are multiples of its inverse, so that what masks of all densities keep can be tabled (`bins`)."""

FINEST = 1.0 / STEPS
"""Steps of densities; those below one keep nothing."""

# SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), constants as signed 64-bit.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_UPPER_HALF = -1 << 32


def tensor_seed(mask_seed: int, source: str, tensor: str) -> int:
    """The seed of one source's mask over one tensor; different sources and tensors are independent.

    All variants of an expert share its mask, so that a search compares them under the same noise.
    """
    return derive_seed(mask_seed, "mask", source.partition(VARIANT_MARK)[0], tensor)


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


def keep(seed: int, density: float, start: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """Which elements a mask of some density keeps: those whose `uniform` lies below the density.

    Args:
        seed: from `tensor_seed`.
        density: in [0, 1); finer than 2^-32 makes no difference.
        start: index of the first element in the flattened tensor.
        count: number of elements.
        device: of the result; None for the CPU.

    Returns:
        int32, 1 where kept and else 0, shape `(count,)`.
    """
    return _hash(seed, start, count, device).lt_(_cut(density))


def keep_by_level(seed: int, density: float, epsilon: float, levels: torch.Tensor, start: int) -> torch.Tensor:
    """Which elements a mask keeps whose density grows from level to level.

    Args:
        seed: from `tensor_seed`.
        density: mean of the densities of levels 0 and 255, in [0, 1].
        epsilon: half the difference of these, at most `min(density, 1 - density)`.
        levels: of the elements, int32, shape `(count,)`.
        start: index of the first element in the flattened tensor.

    Returns:
        int32, 1 where kept and else 0, shape `(count,)`.
    """
    cuts = (level_limits(*ramp(density, epsilon), torch.arange(256)) >> 32).int().to(levels.device)
    return _hash(seed, start, len(levels), levels.device).lt_(cuts.index_select(0, levels))


def bins(seed: int, start: int, count: int, epsilon: float = 0.0, levels: torch.Tensor | int = 0) -> torch.Tensor:
    """From which density on each element is kept, in units of `1 / STEPS`: by masks of density `k / STEPS` if below k.

    Args:
        seed: from `tensor_seed`.
        start: index of the first element in the flattened tensor.
        count: number of elements.
        epsilon: as for `keep_by_level`; 0 for `keep`.
        levels: of the elements, int32, shape `(count,)`; any for `keep`.

    Returns:
        int64 from 0 to `STEPS - 1`, shape `(count,)`.
    """
    first, step = _rise(epsilon)
    rise = ((torch.as_tensor(levels).long() * step >> 32) & _lowest(32)) + first  # products are below 2^64
    above = _hash(seed, start, count).long() + 2**31 - rise
    return (above * STEPS >> 32).clamp_(0, STEPS - 1)


def word(seed: int, start: int) -> int:
    """Where the hashes of a run of elements begin, for `kept_by_word`.

    Args:
        seed: from `tensor_seed`.
        start: index of the first element in the flattened tensor; even.
    """
    return _signed(seed + (start // 2 + 1) * _GAMMA)


def limit(density: float) -> int:
    """What a mask of some density keeps lies below, for `kept_by_word`; all but 2^-64 lies below 2^63 - 1."""
    return _cut(density) << 32


def ramp(density: float, epsilon: float) -> tuple[int, int]:
    """The first of 256 limits and the step between them, for `level_limits`; arguments as for `keep_by_level`.

    In integers, so that what is computed for an element is what a table holds; off by at most 2^-30. Other densities
    move all limits alike, which `bins` relies on.
    """
    first, step = _rise(epsilon)
    return limit(density) + (first << 32), step


def _rise(epsilon: float) -> tuple[int, int]:
    """How far level 0 lies from the mean density, in units of 2^-32, and the step between levels, of 2^-64.

    Two units less than it might be, so that the highest limit fits its integer.
    """
    half = max(math.floor(epsilon * 2.0**32) - 2, 0)
    return -half, (2 * half << 32) // 255


def level_limits(first: torch.Tensor | int, step: torch.Tensor | int, levels: torch.Tensor) -> torch.Tensor:
    """Limits for `kept_by_word`, int64 of the shape of `levels`, from `ramp`."""
    return ((levels.long() * step) & _UPPER_HALF) + first


def inverses(low: torch.Tensor, high: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The inverse probabilities of levels under `keep_by_level`, in fp32; 0 where the probability is 0.

    Args:
        low: probability of level 0, fp32.
        high: probability of level 255, fp32.
        levels: int32.
    """
    q = levels.float() * ((high - low) / 255) + low
    return torch.where(q > 0, 1.0 / q, 0.0)


def kept_by_word(word: torch.Tensor, limit: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """What `keep` and `keep_by_level` keep, as an expression of tensors; bool, of the shape of `index`.

    Args:
        word: from `word`, of the run of elements; int64.
        limit: from `limit`, of the mask or of every element; int64.
        index: of elements within the run; int64.
    """
    z = (index >> 1) * _GAMMA + word
    z = (z ^ ((z >> 30) & _lowest(34))) * _MIX_1
    z = (z ^ ((z >> 27) & _lowest(37))) * _MIX_2
    z = z ^ ((z >> 31) & _lowest(33))
    return (z << (32 - ((index & 1) << 5))) < limit  # the element's half of the hash, above 32 bits that cannot matter


def _lowest(bits: int) -> int:
    return (1 << bits) - 1


def _cut(density: float) -> int:
    """The hash from which on elements are dropped, at most the largest that 32 bits hold."""
    return min(math.ceil(density * 2.0**32) - 2**31, 2**31 - 1)


def _hash(seed: int, start: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """Signed 32-bit integers, uniform; elements 2 j and 2 j + 1 are the lower and upper half of the j-th hash."""
    first, last = start // 2, (start + count + 1) // 2
    z = _multiples(last - first, device) + _signed(seed + (first + 1) * _GAMMA)
    spare = torch.empty_like(z)
    z.bitwise_xor_(_shifted(z, 30, spare)).mul_(_MIX_1)
    z.bitwise_xor_(_shifted(z, 27, spare)).mul_(_MIX_2)
    z.bitwise_xor_(_shifted(z, 31, spare))
    return z.view(torch.int32)[start - 2 * first :][:count]


@lru_cache(maxsize=4)
def _multiples(count: int, device: torch.device | None) -> torch.Tensor:
    """`0, gamma, 2 gamma, ...` modulo 2^64: the same for every block of one size."""
    return torch.arange(count, device=device).mul_(_GAMMA)


def _signed(word: int) -> int:
    """The signed 64-bit integer that equals a number modulo 2^64."""
    return (word + 2**63) % 2**64 - 2**63


def _shifted(z: torch.Tensor, bits: int, out: torch.Tensor) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return torch.bitwise_right_shift(z, bits, out=out).bitwise_and_(_lowest(64 - bits))
