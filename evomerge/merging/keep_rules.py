"""Keep rules of a plan, as plain data: what of a source's change takes part. `evomerge.merging.keeps` carries them out.

Legend: `x = theta_k - theta_0` the change of source k, formed in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Band", "Clip", "Drop", "Fence", "Keep", "Prune", "RankScope", "Trim"]

RankScope = Literal["row", "tensor"]
"""Among which elements magnitudes are ranked: those of a row (the last axis), or of the whole tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trim:
    """Keep the largest magnitudes.

    Attributes:
        threshold: smallest magnitude kept, an fp32 value.
        last_tie: index of the last element that is kept among those whose magnitude equals the threshold.
    """

    threshold: float
    last_tie: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Keep elements at random.

    Attributes:
        seed: of the mask, see `evomerge.merging.masks`.
        density: probability of being kept.
    """

    seed: int
    density: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """Keep what one trim keeps and another does not.

    Attributes:
        inner: what is kept.
        outer: what of it is not: the largest magnitudes.
    """

    inner: Trim
    outer: Trim


@dataclass(frozen=True, kw_only=True, slots=True)
class Prune:
    """Keep elements at random, large ones more often.

    The probability of an element of level l (see `evomerge.merging.ranks`) is `density - epsilon + 2 epsilon l / 255`.

    Attributes:
        seed: of the mask, see `evomerge.merging.masks`.
        density: mean probability of being kept.
        epsilon: half the width of the range of probabilities, from `masks.window`; at most `min(density, 1 - density)`.
        ranks: among which elements magnitudes are ranked.
        inverse: multiply what is kept by the inverse of its probability, both in fp32.
    """

    seed: int
    density: float
    epsilon: float
    ranks: RankScope
    inverse: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Cut magnitudes down to a limit, an fp32 value."""

    limit: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fence:
    """Keep what is important: `|x|` times its row's divergence (see `evomerge.merging.selection`), in fp32.

    Attributes:
        least: smallest importance kept.
        columns: elements per row.
    """

    least: float
    columns: int


Keep = Trim | Band | Drop | Prune | Clip | Fence
