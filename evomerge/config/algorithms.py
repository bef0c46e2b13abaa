"""What a user may write about the algorithm of a search. Knows nothing of how they work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from evomerge.config.base import Finite, Strict

__all__ = [
    "Algorithm",
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


class AlgorithmConfig(Strict):
    """What all algorithms have in common."""

    contest: ClassVar[Literal["mean", "front"]] = "front"
    """What its candidates compete for: the best weighted mean, or a place on the front."""
    objectives: ClassVar[tuple[int, int]] = (1, 1000)
    """Fewest and most objectives that it can take."""
    most_genes: ClassVar[int] = 1_000_000
    share: ClassVar[int] = 0
    """How many genomes of a generation it needs for each objective, and once more; 0 if it does not matter."""

    kind: str
    population: Population
    """Candidates per generation."""

    def misfit(self, objectives: int, genes: int = 1) -> str | None:
        """Why the algorithm cannot take so many objectives and genes; None if it can."""
        fewest, most = self.objectives
        if genes > self.most_genes:
            return (
                f"{self.kind} takes at most {self.most_genes} genes; got {genes}; use fewer knots or another algorithm"
            )
        if objectives < fewest:
            return f"{self.kind} needs at least {fewest} objectives; got {objectives}; cma takes one"
        if objectives > most:
            return f"{self.kind} takes at most {most} objectives; got {objectives}; nsga3 takes more"
        least = self.share * (objectives + 1)
        if self.population < least:
            return (
                f"{self.kind} with {objectives} objectives needs a population of at least {least}, {self.share} for "
                f"each of {objectives + 1} islands; got {self.population}"
            )
        return None


class CmaConfig(AlgorithmConfig):
    """CMA-ES on the weighted mean of the objectives."""

    contest = "mean"
    kind: Literal["cma"]
    population: Population = 24
    sigma: Sigma = 0.2
    """First step size, as a share of each gene's range."""
    lr_adapt: bool = False
    """Smaller learning rates where scores say little: steadier under noise, slower without."""
    warm_start: Path | None = None
    """Folder of an earlier run over the same genes, whose best candidates give the first distribution."""


class SepCmaConfig(AlgorithmConfig):
    """CMA-ES with a diagonal covariance on the weighted mean of the objectives, for more than about 100 genes."""

    contest = "mean"
    kind: Literal["sep_cma"]
    population: Population = 32
    sigma: Sigma = 0.2
    """First step size, as a share of each gene's range."""
    warm_start: Path | None = None
    """Folder of an earlier run over the same genes, whose best candidates give the first mean and step size."""


class CatCmaConfig(AlgorithmConfig):
    """CMA-ES whose choices are categories without an order, on the weighted mean of the objectives."""

    contest = "mean"
    kind: Literal["cat_cma"]
    population: Population = 24
    sigma: Sigma = 0.2
    """First step size, as a share of each gene's range."""


class Nsga2Config(AlgorithmConfig):
    """NSGA-II on all objectives."""

    kind: Literal["nsga2"]
    population: Population = 20


class Nsga3Config(AlgorithmConfig):
    """NSGA-III on all objectives, for three and more."""

    objectives = (2, 1000)
    kind: Literal["nsga3"]
    population: Population = 20


class SmsEmoaConfig(AlgorithmConfig):
    """SMS-EMOA on all objectives: survivors are chosen by the hypervolume that they add."""

    objectives = (2, 4)
    kind: Literal["sms_emoa"]
    population: Population = 40


class IslandsConfig(AlgorithmConfig):
    """Islands of CMA-ES with a diagonal covariance: one for each objective, one in the middle."""

    objectives = (2, 1000)
    share = 4
    kind: Literal["islands"]
    population: Population = 60
    """Candidates per generation, shared by the islands."""
    sigma: Sigma = 0.2
    """First step size, as a share of each gene's range."""


class MapConfig(AlgorithmConfig):
    """Amortised Pareto fronts: a quadratic model of each objective, for at most 8 genes."""

    most_genes = 8  # above it a quadratic has more unknowns, 45 at 8 genes, than a search can afford to learn
    kind: Literal["map"]
    population: Population = 20


class RandomConfig(AlgorithmConfig):
    """Uniform random search, the reference every other algorithm must beat."""

    kind: Literal["random"]
    population: Population = 20
    """Candidates per batch."""


Algorithm = Annotated[
    CmaConfig
    | SepCmaConfig
    | CatCmaConfig
    | Nsga2Config
    | Nsga3Config
    | SmsEmoaConfig
    | IslandsConfig
    | MapConfig
    | RandomConfig,
    Field(discriminator="kind"),
]
