"""Moves on paths through layers: each changes one run of layers and leaves the rest as it is.

A run that is replaced or put in keeps native depth: the layers that stood there, of another model. That crosses in one
step what no sequence of better and better paths leads over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
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

_SPREAD = 0.3
"""Standard deviation of a change of scale, as a logarithm."""


def moved(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    """A path of the space that differs by one move; the same path where every move is beyond the space."""
    moves = _moves(space)
    shares = np.array([*moves.values()])
    for number in random.choice(len(moves), size=_TRIES, p=shares / shares.sum()):
        move = [*moves][int(number)]
        changed = move(path, space, random)
        if changed != path and space.stock.allows(len(changed)):
            return changed
    return path


def _moves(space: RoutingSpace) -> dict[Move, float]:
    """What may be done in a space, and how often it is tried."""
    moves: dict[Move, float] = {}
    if len(space.stock.sources) > 1:
        moves |= {_graft: 4.0, _shift: 1.0}
    if not space.aligned:
        moves |= {_insert: 1.0, _delete: 1.0, _repeat: 1.0}
    if space.scales[0] < space.scales[1]:
        moves |= {_scale: 2.0}
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
    """One layer at a border between two models goes to the other model."""
    borders = [place for place in range(1, len(path)) if path[place].source != path[place - 1].source]
    if not borders:
        return path
    border = borders[random.integers(len(borders))]
    before, after = path[border - 1], path[border]
    if random.random() < 0.5:
        return (*path[: border - 1], replace(before, source=after.source), *path[border:])
    return (*path[:border], replace(after, source=before.source), *path[border + 1 :])


def _scale(path: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    """Another scale where the path leaves its model or its order, else anywhere."""
    joints = [place for place in range(1, len(path)) if _is_joint(path[place - 1], path[place])]
    places = joints if joints and random.random() < 0.8 else range(len(path))
    place = places[random.integers(len(places))]
    low, high = space.scales
    scale = min(max(path[place].scale * math.exp(_SPREAD * random.standard_normal()), low), high)
    return (*path[:place], replace(path[place], scale=scale), *path[place + 1 :])


def _is_joint(before: Hop, after: Hop) -> bool:
    return after.source != before.source or after.layer != before.layer + 1


def _run(length: int, random: np.random.Generator) -> tuple[int, int]:
    """Where a run begins and ends: up to half the path, anywhere."""
    many = int(random.integers(1, max(length // 2, 1) + 1))
    start = int(random.integers(0, length - many + 1))
    return start, start + many


def _of_another(run: Path, space: RoutingSpace, random: np.random.Generator) -> Path:
    others = [source for source in space.stock.sources if source != run[0].source]
    source = others[random.integers(len(others))]
    return tuple(replace(hop, source=source) for hop in run)
