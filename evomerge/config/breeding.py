"""What a user may write about spaces in which genomes are crossed, and about breeding in them (M2N2)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evomerge.config.algorithms import AlgorithmConfig, Population
from evomerge.config.base import Finite
from evomerge.config.space import SpaceConfig

__all__ = ["M2n2Config", "SoupConfig", "SplitPointConfig"]


@SpaceConfig.register("evomerge.spaces.split_point:build")
class SplitPointConfig(SpaceConfig):
    """Linear merges with a coefficient for each model at each place, crossed on the sphere at a split point (M2N2)."""

    crosses = True
    needs_products = True

    kind: Literal["split_point"]
    places: Literal["layer", "module"] = "layer"
    """Where a split may lie: between layers, or also between the attention and the MLP of a layer."""
    base: bool = False
    """Whether the base is one of the parents."""


@SpaceConfig.register("evomerge.spaces.soup:build")
class SoupConfig(SpaceConfig):
    """Averages of many checkpoints (Recycle, arXiv 2412.04144): shares of the experts that sum to one."""

    crosses = True

    kind: Literal["soup"]
    shares: Literal["simplex", "signed"] = "simplex"
    """`simplex`: none is negative. `signed`: each from -1 to 1 before all are shifted to a sum of one."""
    knots: Annotated[int, Field(ge=1)] = 1
    """Values over depth for each expert, interpolated linearly over the layers."""
    select: bool = False
    """Also searches which experts enter; what is left out is not read."""


@AlgorithmConfig.register("evomerge.population.m2n2:build")
class M2n2Config(AlgorithmConfig):
    """M2N2: an archive whose members compete for items, and children of members that complement each other.

    Takes spaces that cross genomes. Members are compared item by item, so `fitness.items.draw: fixed` suits it best.
    """

    meets_items = True
    steady = True

    kind: Literal["m2n2"]
    population: Population = 20
    """Children per generation."""
    archive: Annotated[int, Field(ge=2)] = 20
    """Most members of the archive."""
    alpha: Annotated[Finite, Field(ge=0)] = 1.0
    """How hard items are fought for; 0: not at all."""
    mutation: Annotated[Finite, Field(ge=0, le=1)] = 0.0
    """Standard deviation of what is added to every gene of a child, as a share of its range; models that were trained
    need none."""

    def misfit(self, objectives: int, genes: int = 1, space: str | None = None) -> str | None:
        """See `AlgorithmConfig.misfit`."""
        known = [kind for kind, member in SpaceConfig.kinds.items() if getattr(member, "crosses", False)]
        if space not in (None, *known):
            return f"{self.kind} searches spaces that cross genomes, {' or '.join(known)}; got {space}"
        return super().misfit(objectives, genes)
