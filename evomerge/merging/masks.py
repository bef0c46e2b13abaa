"""Random masks without storage of their own: a draw for every (seed, element), from two tables that all masks share.

The draw of element i is the fractional part of `ONE[(a + i) mod P] + OTHER[(b + i) mod Q]`: cyclic tables of random
numbers, prime in length, entered at places `a` and `b` that the seed tells. Two elements nearer than P Q = 2^40 differ
in their place of one table at least, so their draws are independent, within a mask and between masks. To read runs of
two tables that stay in a processor's cache is several times as fast as to hash every element (tables of noise: Salimans
et al. 2017, "Evolution strategies as a scalable alternative to reinforcement learning", section 2.1).

A draw depends on nothing but the seed and the element's place in its unsharded tensor, so a mask is the same in any
block size, in any order, on any device and after a resume. Draws are multiples of `GRAIN`, and all that is added to and
compared with them is, too: none of it is rounded. Knows nothing of recipes or models.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from evomerge.recipe.transform_table import VARIANT_MARK
from evomerge.rng import derive_seed

__all__ = [
    "FINEST",
    "GRAIN",
    "RUN",
    "STEPS",
    "bins",
    "draws",
    "keep",
    "keep_by_level",
    "level_limits",
    "limit",
    "ramp",
    "tensor_seed",
    "uniform",
    "window",
    "windows",
]

STEPS = 10_000
"""Densities of masks are multiples of its inverse, so that what masks of all densities keep can be tabled (`bins`)."""

FINEST = 1.0 / STEPS
"""Steps of densities; those below one keep nothing."""

GRAIN = 2.0**-23
"""Steps of draws; sums of two are exact in fp32."""

RUN = 1 << 20
"""Elements of the longest run whose `windows` are always slices; of longer ones they may be gathered."""

_LEVELS = 255
_PERIODS = (1_048_573, 1_048_571)  # the largest primes below 2^20: tables of 8 MB each, their first RUN elements twice

# SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"), constants as signed 64-bit.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


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
        fp64, shape `(count,)`, multiples of `GRAIN`.
    """
    return draws(*windows(seed, start, count)).double()


def keep(seed: int, density: float, start: int, count: int, device: torch.device | None = None) -> torch.Tensor:
    """Which elements a mask of some density keeps: those whose `uniform` lies below the density.

    Args:
        seed: from `tensor_seed`.
        density: in [0, 1].
        start: index of the first element in the flattened tensor.
        count: number of elements.
        device: of the result; None for the CPU.

    Returns:
        fp32, 1 where kept and else 0, shape `(count,)`.
    """
    return draws(*windows(seed, start, count, device)).lt_(limit(density))


def keep_by_level(seed: int, density: float, epsilon: float, levels: torch.Tensor, start: int) -> torch.Tensor:
    """Which elements a mask keeps whose density grows from level to level.

    Args:
        seed: from `tensor_seed`.
        density: mean of the densities of levels 0 and 255, in [0, 1].
        epsilon: half the difference of these, from `window`.
        levels: of the elements, shape `(count,)`.
        start: index of the first element in the flattened tensor.

    Returns:
        fp32, 1 where kept and else 0, shape `(count,)`.
    """
    limits = level_limits(*ramp(density, epsilon), levels)
    return draws(*windows(seed, start, len(levels), levels.device)).lt_(limits)


def bins(seed: int, start: int, count: int, epsilon: float = 0.0, levels: torch.Tensor | int = 0) -> torch.Tensor:
    """From which density on each element is kept, in units of `1 / STEPS`: by masks of density `k / STEPS` if below k.

    Args:
        seed: from `tensor_seed`.
        start: index of the first element in the flattened tensor.
        count: number of elements.
        epsilon: as for `keep_by_level`; 0 for `keep`.
        levels: of the elements, shape `(count,)`; any for `keep`.

    Returns:
        int64 from 0 to `STEPS - 1`, shape `(count,)`.
    """
    half = _half(epsilon)
    units = draws(*windows(seed, start, count)).div_(GRAIN).long()
    above = units + _LEVELS * half - 2 * half * torch.as_tensor(levels).long()
    return (above * STEPS >> 23).clamp_(0, STEPS - 1)


def limit(density: float) -> float:
    """What a mask of some density keeps lies below, and how probable that is: the density, rounded up to `GRAIN`."""
    return math.ceil(density / GRAIN) * GRAIN


def window(epsilon: float) -> float:
    """Half the range of densities that levels can have: at most what is asked for, less by 3e-5 at most."""
    return _LEVELS * _half(epsilon) * GRAIN


def ramp(density: float, epsilon: float) -> tuple[float, float]:
    """The limit of level 0 and the step between levels, for `level_limits`; arguments as for `keep_by_level`.

    Other densities move all limits alike, which `bins` relies on.
    """
    return limit(density) - window(epsilon), 2 * _half(epsilon) * GRAIN


def _half(epsilon: float) -> int:
    """Half the step between levels, in units of `GRAIN`."""
    return math.floor(epsilon / (_LEVELS * GRAIN))


def level_limits(first: torch.Tensor | float, step: torch.Tensor | float, levels: torch.Tensor) -> torch.Tensor:
    """What elements of some levels are kept below, and how probable that is; fp32. Numbers are from `ramp`."""
    return levels.float() * step + first


def draws(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1) from the two `windows` of a run of elements, fp32."""
    total = one + other
    return total - total.floor()


def windows(seed: int, start: int, count: int, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the tables hold for a run of elements, for `draws`: fp32, each of shape `(count,)`, not to be written to."""
    quotient, first = divmod(seed, _PERIODS[0])
    one, other = (_table(number, device) for number in range(2))
    return _window(one, _PERIODS[0], first + start, count), _window(other, _PERIODS[1], quotient + start, count)


def _window(table: torch.Tensor, period: int, place: int, count: int) -> torch.Tensor:
    place %= period
    if place + count <= len(table):
        return table[place : place + count]
    return table[torch.arange(place, place + count, device=table.device) % period]


@lru_cache(maxsize=8)
def _table(number: int, device: torch.device | None) -> torch.Tensor:
    """One table, its first `RUN` numbers again at its end."""
    period = _PERIODS[number]
    with torch.inference_mode(mode=False):  # of one kind, whoever asks first: kernels are compiled for it
        numbers = (_hashes(number, period) & (1 << 23) - 1).float().mul_(GRAIN)
        return torch.cat([numbers, numbers[:RUN]]).to(device)


def _hashes(seed: int, count: int) -> torch.Tensor:
    """The first numbers of SplitMix64, as signed 64-bit integers."""
    z = (torch.arange(count) + 1) * _GAMMA + seed
    z = (z ^ _shifted(z, 30)) * _MIX_1
    z = (z ^ _shifted(z, 27)) * _MIX_2
    return z ^ _shifted(z, 31)


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (z >> bits) & (1 << 64 - bits) - 1
