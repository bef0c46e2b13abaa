"""What a user may write about simple and published baselines. Knows nothing of how they work."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal

from pydantic import Field

from evomerge.config.algorithms import AlgorithmConfig, Population
from evomerge.config.base import Finite

__all__ = ["FrankWolfeConfig", "GridConfig", "KinshipConfig", "QdConfig", "ReinforcedConfig"]


@AlgorithmConfig.register("evomerge.population.grid:build")
class GridConfig(AlgorithmConfig):
    """A regular lattice over all genes, once through."""

    steady = True
    kind: Literal["grid"]
    levels: Annotated[int, Field(ge=2)] = 5
    """Values of each gene, evenly from its lowest to its highest; a choice takes each of its options once."""
    population: Population = 20
    """Candidates per batch."""

    def least(self, choices: Sequence[int]) -> int:
        """All points of the lattice."""
        return prod(options or self.levels for options in choices)

    def most(self, choices: Sequence[int]) -> int:
        """The same."""
        return self.least(choices)


@AlgorithmConfig.register("evomerge.population.kinship:build")
class KinshipConfig(AlgorithmConfig):
    """Greedy merging guided by kinship: the best are merged in pairs, and the best with its least kin."""

    contest = "mean"
    kind: Literal["kinship"]
    best: Annotated[int, Field(ge=2, le=8)] = 4
    """How many of the best are merged in pairs."""
    population: Population = 8
    """Candidates per generation."""


@AlgorithmConfig.register("evomerge.population.frank_wolfe:build")
class FrankWolfeConfig(AlgorithmConfig):
    """Successive steps towards single experts, whichever helps most, at a falling rate."""

    contest = "mean"
    kind: Literal["frank_wolfe"]
    by: Literal["model", "layer"] = "model"
    """Whether an expert is taken for the whole model at once, or for one place in the model."""
    population: Population = 12
    """Candidates per generation."""


@AlgorithmConfig.register("evomerge.population.reinforced:build")
class ReinforcedConfig(AlgorithmConfig):
    """A policy that chooses a part of each gene's range, and is rewarded by the score."""

    contest = "mean"
    kind: Literal["reinforced"]
    levels: Annotated[int, Field(ge=2, le=64)] = 4
    """Parts into which a number's range is cut; choices have their own."""
    rate: Annotated[Finite, Field(gt=0, le=1)] = 0.2
    """How far a generation moves the policy towards its better half."""
    population: Population = 20
    """Candidates per generation."""


@AlgorithmConfig.register("evomerge.population.quality_diversity:build")
class QdConfig(AlgorithmConfig):
    """Quality diversity: one grid of elites for each objective, by what they score on the others."""

    objectives = (2, 4)
    kind: Literal["qd"]
    bins: Annotated[int, Field(ge=2, le=100)] = 15
    """Cells along each axis of a grid."""
    population: Population = 20
    """Candidates per generation."""
