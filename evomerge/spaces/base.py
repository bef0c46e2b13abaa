"""`Genome`, `Gene` and the `SearchSpace` protocol: where an optimizer's numbers get their meaning.

Knows nothing of optimizers, weights or scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from evomerge.config import SpaceConfig
    from evomerge.recipe import OutputDtype, Recipe, Role

__all__ = ["Gene", "Genome", "Layered", "Models", "Products", "SearchSpace", "build_space"]


@dataclass(frozen=True, slots=True)
class Genome:
    """A point of the unit box, without meaning of its own; a search space decodes it.

    Attributes:
        values: `[0, 1]^d`.

    Raises:
        ValueError: a value outside the box, or none at all.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        values = tuple(float(value) + 0.0 for value in self.values)  # + 0.0 turns -0.0 into 0.0
        outside = [i for i, value in enumerate(values) if not 0.0 <= value <= 1.0]
        if not values or outside:
            got = f"value {outside[0]} is {values[outside[0]]}" if values else "no values"
            raise ValueError(f"a genome holds at least one number, each in [0, 1]; got {got}")
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gene:
    """One coordinate of a search space: a number, or a choice from a list.

    Attributes:
        name: parameter, module group, expert and knot, for example `weight.attention.rev.k2` or `weight.embed.rev`; of
            choices, for example `transform.rev` or `option.vote`.
        low, high: natural value at 0 and at 1; 0 and 1 for choices.
        start: where the search begins, in [0, 1].
        choices: what it chooses from; empty for numbers. The unit interval is cut into as many equal parts.
    """

    name: str
    low: float
    high: float
    start: float
    choices: tuple[str, ...] = ()

    def natural(self, value: float) -> float:
        """The natural value of a unit-box value."""
        return self.low + value * (self.high - self.low)

    def index(self, value: float) -> int:
        """Which of its choices a unit-box value stands for."""
        return min(int(value * len(self.choices)), len(self.choices) - 1)


class SearchSpace(Protocol):
    """The set of recipes that a run searches."""

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The coordinates of its genomes, in order."""

    @property
    def start(self) -> Genome:
        """Where the search begins."""

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome. Total: every genome with as many values as there are genes has a valid recipe.

        Raises:
            ValueError: a genome of another length.
        """


Products = Sequence[tuple["Role", int | None, Sequence[Sequence[float]]]]
"""Module role, layer (None outside the layers) and the scalar products of all models' weights there, `[K][K]` with the
base first."""


@runtime_checkable
class Layered(SearchSpace, Protocol):
    """A space with knots over depth, of which there may be fewer."""

    def coarser(self, knots: int) -> tuple[Self, NDArray[np.float64]]:
        """The same space with fewer knots, and what its genomes are here.

        Args:
            knots: at most so many over depth, for each parameter.

        Returns:
            The space, and `(d, d')`: that matrix times one of its genomes is the genome here that decodes to the same
            recipe; where these knots cannot follow that profile, to the closest, by least squares over the layers.

        Raises:
            ValueError: fewer than 1.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """What a space must know of the models that it merges.

    Attributes:
        base: pool name of the base model.
        experts: pool names of the experts, in the user's order.
        layers: number of layers of every model.
        dtype: dtype of merged weights.
        products: scalar products of all models' weights, for spaces that need them; None until workers measured them.
    """

    base: str
    experts: tuple[str, ...]
    layers: int
    dtype: OutputDtype
    products: Products | None = None


def build_space(config: SpaceConfig, models: Models, seed: int) -> SearchSpace:
    """The search space that a configuration describes.

    Args:
        config: the `space` of an experiment.
        models: what is merged.
        seed: seed of the run.

    Raises:
        ConfigError: the space contradicts the models.
    """
    space: SearchSpace = config.built(models, seed)
    return space
