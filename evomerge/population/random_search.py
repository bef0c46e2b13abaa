"""Uniform random search, the reference that every other algorithm must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from evomerge.pareto import shortlist
from evomerge.population.base import Evaluation, Problem, SteadyAlgorithm
from evomerge.rng import stream
from evomerge.spaces import Genome

if TYPE_CHECKING:
    from evomerge.config import RandomConfig

__all__ = ["RandomSearch", "build"]


@final
class RandomSearch(SteadyAlgorithm):
    """Independent uniform genomes; each generation has a random stream of its own.

    Answers with the non-dominated genomes of all that were told.

    Args:
        genes: number of coordinates.
        population: genomes per generation.
        seed: seed of the run.
    """

    def __init__(self, *, genes: int, population: int, seed: int) -> None:
        self.population = population
        self._genes = genes
        self._seed = seed
        self._generation = 0
        self._told: list[Evaluation] = []
        self._latest: tuple[int, tuple[Genome, ...]] = (-1, ())

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return tuple(self._told[i].genome for i in shortlist([evaluation.costs for evaluation in self._told]))

    def _propose(self) -> tuple[Genome, ...]:
        return self._drawn(self._generation)

    def _next(self, number: int) -> Genome:
        generation, slot = divmod(number, self.population)
        if self._latest[0] != generation:
            self._latest = generation, self._drawn(generation)
        return self._latest[1][slot]

    def _drawn(self, generation: int) -> tuple[Genome, ...]:
        rows = stream(self._seed, "random search", generation).random((self.population, self._genes))
        return tuple(Genome(tuple(row)) for row in rows)

    def _learn_one(self, evaluation: Evaluation) -> None:
        self._told.append(evaluation)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        self._told.extend(evaluations)
        self._generation += 1


def build(config: RandomConfig, problem: Problem) -> RandomSearch:
    """As the configuration describes it."""
    return RandomSearch(genes=len(problem.space.genes), population=config.population, seed=problem.seed)
