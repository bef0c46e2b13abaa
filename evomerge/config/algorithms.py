"""What a user may write about the algorithm of a search. Knows nothing of how they work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from evomerge.config.base import Finite
from evomerge.config.registry import Registered

__all__ = [
    "Acquisition",
    "AlgorithmConfig",
    "CatCmaConfig",
    "CmaConfig",
    "IslandsConfig",
    "MapConfig",
    "Nsga2Config",
    "Nsga3Config",
    "RandomConfig",
    "SepCmaConfig",
    "SmsEmoaConfig",
]

Population = Annotated[int, Field(ge=4)]
Sigma = Annotated[Finite, Field(gt=0, le=1)]
Acquisition = Literal["mean", "improvement"]


class AlgorithmConfig(Registered):
    """What all algorithms have in common.

    Builders get the configuration and an `evomerge.population.Problem`, and give an `evomerge.population.Algorithm`.
    """

    contest: ClassVar[Literal["mean", "front"]] = "front"
    """What its candidates compete for: the best weighted mean, or a place on the front."""
    objectives: ClassVar[tuple[int, int]] = (1, 1000)
    """Fewest and most objectives that it can take."""
    most_genes: ClassVar[int] = 1_000_000
    spaces: ClassVar[tuple[str, ...]] = ()
    """Kinds of spaces that it can search; empty for all."""
    meets_items: ClassVar[bool] = False
    """Whether it compares candidates of different generations item by item, so that a fixed draw suits it."""
    steady: ClassVar[bool] = False
    """Whether it can do without generations; what is built is an `evomerge.population.SteadyAlgorithm` then."""
    share: ClassVar[int] = 0
    """How many genomes of a generation it needs for each objective, and once more; 0 if it does not matter."""
    library: ClassVar[str | None] = None
    """Module that its first generation imports, if that takes long; runs begin with it while workers start."""

    in_flight: Annotated[int, Field(ge=1)] | None = None
    """Only for `random`, `grid`, `m2n2` and `graft`: no generations; so many candidates are in work at any time, and
    one more is asked for after each that is told. Best a few more than workers. Left out: whole generations."""

    @model_validator(mode="after")
    def _may_need_generations(self) -> Self:
        if self.in_flight is not None and not self.steady:
            raise ValueError(f"in_flight: {self.kind} learns from whole generations; leave it out")
        return self

    def population_at(self, asked: int) -> int:
        """Candidates of the generation that begins when so many were asked; 0 if there is nothing left to ask.

        The value of the key `population`, for algorithms whose generations are all equally large.
        """
        population: int | None = vars(self).get("population")
        if population is None:
            raise ValueError(f"{self.kind}: expected a key population, or a population_at of its own; give it one")
        return population

    def step_at(self, asked: int) -> int:
        """Candidates that the budget must hold so that the search goes on when so many were asked; 0: it is over."""
        population = self.population_at(asked)
        return population if self.in_flight is None else min(population, 1)

    def least(self, choices: Sequence[int]) -> int:
        """Fewest candidates that it needs over genes with so many options each, 0 for numbers."""
        return self.population_at(0)

    def most(self, choices: Sequence[int]) -> int:
        """Most candidates that it ever asks for over such genes; by itself, without end."""
        return sys.maxsize

    def misfit(self, objectives: int, genes: int = 1, space: str | None = None) -> str | None:
        """Why the algorithm cannot take so many objectives and genes, or that kind of space; None if it can."""
        fewest, most = self.objectives
        if self.spaces and space not in (None, *self.spaces):
            return f"{self.kind} searches spaces of kind {' or '.join(self.spaces)}; got {space}"
        if genes > self.most_genes:
            return (
                f"{self.kind} takes at most {self.most_genes} genes; got {genes}; use fewer knots or another algorithm"
            )
        if objectives < fewest:
            return f"{self.kind} needs at least {fewest} objectives; got {objectives}; cma takes one"
        if objectives > most:
            return f"{self.kind} takes at most {most} objectives; got {objectives}; nsga3 takes more"
        least = self.share * (objectives + 1)
        if self.population_at(0) < least:
            return (
                f"{self.kind} with {objectives} objectives needs a population of at least {least}, {self.share} for "
                f"each of {objectives + 1} islands; got {self.population_at(0)}"
            )
        return None


@AlgorithmConfig.register("evomerge.population.cma:build")
class CmaConfig(AlgorithmConfig):
    """CMA-ES on the weighted mean of the objectives."""

    contest = "mean"
    library = "cmaes"
    kind: Literal["cma"]
    population: Population = 24
    sigma: Sigma = 0.2
    """First step size, as a share of each gene's range."""
    lr_adapt: bool = False
    """Smaller learning rates where scores say little: steadier under noise, slower without."""
    warm_start: Path | None = None
    """Folder of an earlier run over the same genes, whose best candidates give the first distribution."""


@AlgorithmConfig.register("evomerge.population.cma:build")
class SepCmaConfig(AlgorithmConfig):
    """CMA-ES with a diagonal covariance on the weighted mean of the objectives, for more than about 100 genes."""

    contest = "mean"
    library = "cmaes"
    kind: Literal["sep_cma"]
    population: Population = 32
    sigma: Sigma = 0.2
    """First step size, as a share of each gene's range."""
    warm_start: Path | None = None
    """Folder of an earlier run over the same genes, whose best candidates give the first mean and step size."""


@AlgorithmConfig.register("evomerge.population.cat_cma:build")
class CatCmaConfig(AlgorithmConfig):
    """CMA-ES whose choices are categories without an order, on the weighted mean of the objectives."""

    contest = "mean"
    library = "cmaes"
    kind: Literal["cat_cma"]
    population: Population = 24
    sigma: Sigma = 0.2
    """First step size, as a share of each gene's range."""


@AlgorithmConfig.register("evomerge.population.genetic:build")
class Nsga2Config(AlgorithmConfig):
    """NSGA-II on all objectives."""

    kind: Literal["nsga2"]
    population: Population = 20


@AlgorithmConfig.register("evomerge.population.genetic:build")
class Nsga3Config(AlgorithmConfig):
    """NSGA-III on all objectives, for three and more."""

    objectives = (2, 1000)
    kind: Literal["nsga3"]
    population: Population = 20


@AlgorithmConfig.register("evomerge.population.genetic:build")
class SmsEmoaConfig(AlgorithmConfig):
    """SMS-EMOA on all objectives: survivors are chosen by the hypervolume that they add."""

    objectives = (2, 4)
    kind: Literal["sms_emoa"]
    population: Population = 40


@AlgorithmConfig.register("evomerge.population.islands:build")
class IslandsConfig(AlgorithmConfig):
    """Islands of CMA-ES with a diagonal covariance: one for each objective, one in the middle."""

    objectives = (2, 1000)
    share = 4
    library = "cmaes"
    kind: Literal["islands"]
    population: Population = 60
    """Candidates per generation, shared by the islands."""
    sigma: Sigma = 0.2
    """First step size, as a share of each gene's range."""


@AlgorithmConfig.register("evomerge.population.amortized:build")
class MapConfig(AlgorithmConfig):
    """Amortised Pareto fronts: a quadratic model of each objective, for at most 8 genes, or for many experts nested."""

    most_genes = 8  # above it a quadratic has more unknowns, 45 at 8 genes, than a search can afford to learn
    kind: Literal["map"]
    population: Population = 20
    acquisition: Acquisition = "mean"
    """What the models propose: `mean`: their front, once they are fitted to points of Latin hypercubes.
    `improvement`: what improves the hypervolume most in expectation under their posterior (Bayesian), once they are
    fitted where its variance is largest."""
    nested: Annotated[int, Field(ge=2, le=8)] | None = None
    """Merges so many experts at a time, one coefficient for each, then the merges in turn, by about 12 candidates for
    each expert where it is 2. The experts' order says who is merged with whom. Parameter spaces only, whose other
    genes stay at their start. Left out: all genes at once."""

    def misfit(self, objectives: int, genes: int = 1, space: str | None = None) -> str | None:
        """See `AlgorithmConfig.misfit`."""
        if self.nested is None:
            return super().misfit(objectives, genes, space)
        if space not in (None, "parameter"):
            return f"{self.kind} with nested merging scales experts' weights, in spaces of kind parameter; got {space}"
        return super().misfit(objectives)


@AlgorithmConfig.register("evomerge.population.random_search:build")
class RandomConfig(AlgorithmConfig):
    """Uniform random search, the reference every other algorithm must beat."""

    steady = True
    kind: Literal["random"]
    population: Population = 20
    """Candidates per batch."""
