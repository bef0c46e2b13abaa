"""`Algorithm`: the ask/tell contract that every optimizer keeps, and `Evaluation`, what it is told.

Genomes out, costs in. Knows nothing of recipes, models, benchmarks or failures.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from evomerge.spaces import Genome, SearchSpace

if TYPE_CHECKING:
    from evomerge.config import Algorithm as AlgorithmConfig

__all__ = ["FEWEST_EARLIER", "Algorithm", "Evaluation", "build_algorithm"]

FEWEST_EARLIER = 10
"""Evaluations that a warm start needs: it begins where their best tenth lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an algorithm learns about one genome.

    Attributes:
        costs: one per objective, lower is better.

    Raises:
        ValueError: no costs, or a cost that is not finite.
    """

    genome: Genome
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.costs or not all(math.isfinite(cost) for cost in self.costs):
            raise ValueError(f"an evaluation needs finite costs, one per objective; got {self.costs}")


class Algorithm(ABC):
    """An optimizer over the unit box that works in generations.

    Example:
        ::

            while budget_left:
                genomes = algorithm.ask()
                algorithm.tell([Evaluation(genome=g, costs=(f(g),)) for g in genomes])
            algorithm.answer()

    Deterministic: equal seeds and equal tells give bit-identical asks, in any process. That is how a run resumes, by
    replay; no state is ever saved.

    Attributes:
        population: genomes per generation.
    """

    population: int
    _asked: tuple[Genome, ...] | None = None

    @final
    def ask(self) -> tuple[Genome, ...]:
        """The next generation, exactly `population` genomes.

        Raises:
            RuntimeError: the last generation was not told yet.
        """
        if self._asked is not None:
            raise RuntimeError("ask() was called twice; tell() the costs of the last generation first")
        self._asked = self._propose()
        return self._asked

    @final
    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """The costs of the generation that was asked, in the order asked.

        Raises:
            RuntimeError: nothing was asked.
            ValueError: other genomes than those asked, another order, or another number.
        """
        if self._asked is None:
            raise RuntimeError("tell() was called without ask(); ask() for a generation first")
        if tuple(evaluation.genome for evaluation in evaluations) != self._asked:
            raise ValueError(
                f"tell() needs the {len(self._asked)} genomes that ask() gave, in the same order; "
                f"got {len(evaluations)}, or other ones"
            )
        self._learn(evaluations)
        self._asked = None

    @abstractmethod
    def answer(self) -> tuple[Genome, ...]:
        """What to confirm if the search ended now, best first; distinct, and empty when nothing was told."""

    @abstractmethod
    def _propose(self) -> tuple[Genome, ...]:
        """One generation."""

    @abstractmethod
    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in one generation, which is complete and in order; must not change its argument."""


def build_algorithm(
    config: AlgorithmConfig,
    *,
    space: SearchSpace,
    weights: tuple[float, ...],
    seed: int,
    earlier: Sequence[Evaluation] = (),
) -> Algorithm:
    """The algorithm that a configuration describes; imports the library behind it only now.

    Args:
        config: the `algorithm` of an experiment.
        space: gives the genes and the start.
        weights: one per objective, positive; their share in the mean that single-objective algorithms optimize.
        seed: seed of the run.
        earlier: what another run over the same genes found, for a warm start; empty for none.

    Raises:
        ValueError: an algorithm that cannot take these genes or objectives, or fewer than `FEWEST_EARLIER` evaluations.
    """
    if misfit := config.misfit(len(weights), len(space.genes)):
        raise ValueError(misfit)
    match config.kind:
        case "cma" | "sep_cma":
            from evomerge.population.cma import Cma, learned_from

            return Cma(
                start=space.start,
                weights=weights,
                population=config.population,
                sigma=config.sigma,
                seed=seed,
                diagonal=config.kind == "sep_cma",
                lr_adapt=config.kind == "cma" and config.lr_adapt,
                learned=learned_from(earlier, weights) if earlier else None,
            )
        case "cat_cma":
            from evomerge.population.cat_cma import CatCma

            return CatCma(
                genes=space.genes, weights=weights, population=config.population, sigma=config.sigma, seed=seed
            )
        case "islands":
            from evomerge.population.islands import Islands

            return Islands(
                start=space.start, objectives=len(weights), population=config.population, sigma=config.sigma, seed=seed
            )
        case "nsga2" | "nsga3" | "sms_emoa" | "map":
            from evomerge.population import amortized, genetic

            kinds: dict[str, type[genetic.Genetic | amortized.Map]] = {
                "nsga2": genetic.Nsga2,
                "nsga3": genetic.Nsga3,
                "sms_emoa": genetic.SmsEmoa,
                "map": amortized.Map,
            }
            return kinds[config.kind](
                start=space.start, objectives=len(weights), population=config.population, seed=seed
            )
        case "random":
            from evomerge.population.random_search import RandomSearch

            return RandomSearch(genes=len(space.genes), population=config.population, seed=seed)
