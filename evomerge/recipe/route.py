"""`Hop`: one step of a path through layers, of a merged model whose layers come from several models.

Knows nothing of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Hop", "canonical_path"]

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
    own = tuple(Hop(layer=layer) for layer in range(layers))
    return () if tuple(hops) == own else tuple(hops)
