"""`Hop`: one step of a path through layers, of a merged model whose layers come from several models.

Knows nothing of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Hop", "Run", "canonical_path", "runs_of"]

_DECIMALS = 6
"""Places that scales are kept to, as coefficients are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hop:
    """One layer of a path.

    Attributes:
        source: pool name of the model that the layer is taken from; None for the recipe's own merge.
        layer: its number there.
        scale: what the residual stream is multiplied with before it enters the layer.

    Raises:
        ValueError: a negative layer, or a scale that is not positive and finite.
    """

    source: str | None = None
    layer: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        scale = round(float(self.scale), _DECIMALS)
        if self.layer < 0:
            raise ValueError(f"a hop's layer is counted from 0; got {self.layer}")
        if not (math.isfinite(scale) and scale > 0.0):
            raise ValueError(f"a hop's scale must be positive and finite; got {self.scale}")
        object.__setattr__(self, "scale", scale)

    def to_data(self) -> list[str | int | float | None]:
        """Plain data for JSON."""
        return [self.source, self.layer, self.scale]


def canonical_path(hops: Sequence[Hop], layers: int) -> tuple[Hop, ...]:
    """A path in its one spelling: empty for the merge's own layers, each once, in order and unscaled.

    Args:
        hops: the path.
        layers: of each model.

    Raises:
        ValueError: a layer that no model has.
    """
    if beyond := [hop for hop in hops if hop.layer >= layers]:
        raise ValueError(f"a path of models with {layers} layers takes layers 0 to {layers - 1}; got {beyond[0].layer}")
    own = tuple(Hop(layer=layer) for layer in range(layers)) if len(hops) == layers else ()
    return () if tuple(hops) == own else tuple(hops)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Hops that take layers `[start, stop)` of one model, one after the other.

    Attributes:
        source: as a hop's.
        scale: what the residual stream is multiplied with before the first of them; before the others, with nothing.
    """

    source: str | None
    start: int
    stop: int
    scale: float

    def __str__(self) -> str:
        layers = f"{self.start}" if self.stop == self.start + 1 else f"{self.start}-{self.stop - 1}"
        factor = "" if self.scale == 1.0 else f" (x{self.scale:g})"
        return f"{'merge' if self.source is None else self.source} {layers}{factor}"


def runs_of(path: Sequence[Hop]) -> list[Run]:
    """A path as few runs as it takes, in order.

    Example:
        >>> [str(run) for run in runs_of([Hop(layer=0), Hop(layer=1), Hop(source="math", layer=1, scale=0.5)])]
        ['merge 0-1', 'math 1 (x0.5)']
    """
    runs: list[Run] = []
    for hop in path:
        if runs and (hop.source, hop.layer, hop.scale) == (runs[-1].source, runs[-1].stop, 1.0):
            runs[-1] = replace(runs[-1], stop=hop.layer + 1)
        else:
            runs.append(Run(source=hop.source, start=hop.layer, stop=hop.layer + 1, scale=hop.scale))
    return runs
