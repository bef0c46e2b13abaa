"""Moves on paths through layers: each changes one run of layers and leaves the rest as it is.

A run that is replaced or put in keeps native depth: the layers that stood there, of another model. That crosses in one
step what no sequence of better and better paths leads over. A scale at a joint, where the path leaves its model or its
order, goes along when the joint moves; any other stays with its layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from evomerge.recipe import Hop

if TYPE_CHECKING:
    from evomerge.spaces.routing import RoutingSpace

__all__ = ["moved"]

Path = tuple[Hop, ...]
Move = Callable[[Path, "RoutingSpace", np.random.Generator], Path]

_TRIES = 8
"""Moves that are tried until one leads to another path of the space."""

_SHIFT = 0.5
"""Chance that a border that is shifted stops after each layer; so it passes two on average."""

_SPREAD = 0.3
"""Standard deviation of a change of scale, as a logarithm."""


def moved(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    """A path of the space that differs by one move; the same path where every move is beyond the space."""
    moves = _moves(space)
    shares = np.array([*moves.values()])
    for number in random.choice(len(moves), size=_TRIES, p=shares / shares.sum()):
        move = [*moves][int(number)]
        changed = move(path, space, random)
        if move is not _scale:
            changed = _rescaled(changed, path)
        if changed != path and space.stock.allows(len(changed)):
            return changed
    return path


def _moves(space: RoutingSpace) -> dict[Move, float]:
    """What may be done in a space, and how often it is tried: changes of depth seldom, since most do harm."""
    moves: dict[Move, float] = {}
    if len(space.stock.sources) > 1:
        moves |= {_graft: 8.0, _shift: 6.0}
    if not space.aligned:
        moves |= {_insert: 1.0, _delete: 1.0, _repeat: 1.0}
    if space.scales[0] < space.scales[1]:
        moves |= {_scale: 4.0}
    return moves


def _graft(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    """The same layers of another model."""
    start, stop = _run(len(path), random)
    return path[:start] + _of_another(path[start:stop], space, random) + path[stop:]


def _insert(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    """Layers once more, before themselves, of any model."""
    start, stop = _run(len(path), random)
    source = space.stock.sources[random.integers(len(space.stock.sources))]
    return path[:start] + tuple(replace(hop, source=source) for hop in path[start:stop]) + path[start:]


def _delete(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    start, stop = _run(len(path), random)
    return path[:start] + path[stop:]


def _repeat(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    start, stop = _run(len(path), random)
    return path[:stop] + path[start:]


def _shift(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    """A few layers at a border between two models go to the other model."""
    borders = [place for place in range(1, len(path)) if path[place].source != path[place - 1].source]
    if not borders:
        return path
    border = borders[random.integers(len(borders))]
    many = int(random.geometric(_SHIFT))
    start, stop, giver = (border, border + many, border - 1)
    if random.random() < 0.5:
        start, stop, giver = (max(border - many, 0), border, border)
    run = tuple(replace(hop, source=path[giver].source) for hop in path[start:stop])
    return path[:start] + run + path[stop:]


def _scale(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    """Another scale where the path leaves its model or its order, else anywhere."""
    joints = [*_joints(path)]
    places = joints if joints and random.random() < 0.8 else range(len(path))
    place = places[random.integers(len(places))]
    low, high = space.scales
    scale = min(max(path[place].scale * math.exp(_SPREAD * random.standard_normal()), low), high)
    return (*path[:place], replace(path[place], scale=scale), *path[place + 1 :])


def _rescaled(path: Path, before: Path) -> Path:
    """A path with the scales of the one before the move.

    What follows the layer that it followed keeps its scale, each copy of a repeated layer its own. Else a joint takes
    the scale of the nearest joint between the same models, or 1, and any other layer that which it had elsewhere, or 1.
    """
    kept, joints, after = {*_steps(before)}, _joints(before), _joints(path)
    own = {(hop.source, hop.layer): hop.scale for place, hop in enumerate(before) if place not in joints}
    scales: list[float] = []
    for place, step in enumerate(_steps(path)):
        hop = step[1]
        if step in kept:
            scales.append(hop.scale)
        elif place in after:
            alike = [before[other] for other, models in joints.items() if models == after[place]]
            scales.append(_nearest(hop, alike))
        else:
            scales.append(own.get((hop.source, hop.layer), 1.0))
    return tuple(replace(hop, scale=scale) for hop, scale in zip(path, scales, strict=True))


def _steps(path: Path) -> Iterator[tuple[Hop | None, Hop]]:
    """Each layer, behind the one that it follows without its scale; None for the first."""
    return zip((None, *(replace(hop, scale=1.0) for hop in path)), path, strict=False)


def _nearest(hop: Hop, alike: Sequence[Hop]) -> float:
    """The scale of whichever is nearest in depth; 1 if there is none."""
    return min(alike, key=lambda other: abs(other.layer - hop.layer), default=Hop(layer=0)).scale


def _joints(path: Path) -> dict[int, tuple[str | None, str | None]]:
    """Where a path leaves its model or its order, and the models before and after."""
    steps = enumerate(pairwise(path), start=1)
    return {
        place: (one.source, other.source)
        for place, (one, other) in steps
        if other.source != one.source or other.layer != one.layer + 1
    }


def _run(length: int, random: np.random.Generator) -> tuple[int, int]:
    """Where a run begins and ends: up to half the path, anywhere."""
    many = int(random.integers(1, max(length // 2, 1) + 1))
    start = int(random.integers(0, length - many + 1))
    return start, start + many


def _of_another(run: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    others = [source for source in space.stock.sources if source != run[0].source]
    source = others[random.integers(len(others))]
    return tuple(replace(hop, source=source) for hop in run)
