"""What running a merged model takes, told by its recipe alone: every cost is a sum over the layers of its path.

Knows nothing of tensors, speed or the length of a context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from evomerge.recipe.recipe import Recipe

__all__ = ["Cost", "Sizes"]

Cost = Literal["layers", "kv_slots", "parameters", "flops"]
"""`layers` on the path, repeated ones counted each time; `kv_slots`: those of them that keep keys and values, one slot
each; `parameters` of the exported checkpoint; `flops` of one token's forward pass: two for each weight of a matrix that
it meets, the output head included, lookups and what attention does over the context left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How large the models of a pool are; all have the same shape.

    Attributes:
        outside: by cost, what lies outside of the layers.
        layers: by cost, each layer's own `[L]`.

    Raises:
        ValueError: a cost that is missing.
    """

    outside: Mapping[Cost, int]
    layers: Mapping[Cost, tuple[int, ...]]

    def __post_init__(self) -> None:
        expected = set(get_args(Cost))
        if set(self.outside) != expected or set(self.layers) != expected:
            raise ValueError(
                f"expected the costs {sorted(expected)}; got {sorted(self.outside)}, {sorted(self.layers)}"
            )

    def of(self, recipe: Recipe, cost: Cost) -> int:
        """What a recipe's model costs."""
        each = self.layers[cost]
        visited = [hop.layer for hop in recipe.path] or range(recipe.layers)
        return self.outside[cost] + sum(each[layer] for layer in visited)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON; `from_data` is the inverse."""
        return {cost: [self.outside[cost], *self.layers[cost]] for cost in get_args(Cost)}

    @classmethod
    def from_data(cls, data: Mapping[str, list[int]]) -> Self:
        """The inverse of `to_data`."""
        return cls(
            outside={cost: data[cost][0] for cost in get_args(Cost)},
            layers={cost: tuple(data[cost][1:]) for cost in get_args(Cost)},
        )
