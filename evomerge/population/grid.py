"""A regular lattice over few genes: every combination of evenly spaced values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, product
from math import prod
from typing import TYPE_CHECKING, final

from evomerge.pareto import shortlist
from evomerge.population.base import Evaluation, Problem, SteadyAlgorithm
from evomerge.spaces import Gene, Genome

if TYPE_CHECKING:
    from evomerge.config import GridConfig

__all__ = ["Grid", "build"]


@final
class Grid(SteadyAlgorithm):
    """All points of a lattice, once, in order; the last gene runs fastest. A choice takes each of its options.

    Answers with the non-dominated points of those that were told.

    Args:
        genes: the coordinates.
        levels: values of each number, from 0 to 1.
        population: genomes per generation; the last one has what is left.
    """

    def __init__(self, *, genes: Sequence[Gene], levels: int, population: int) -> None:
        axes = [_values(gene, levels) for gene in genes]
        self._points = product(*axes)
        self._left = prod(map(len, axes))
        self._most = population
        self.population = min(population, self._left)
        self._told: list[Evaluation] = []

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return tuple(self._told[i].genome for i in shortlist([evaluation.costs for evaluation in self._told]))

    def _propose(self) -> tuple[Genome, ...]:
        return tuple(Genome(point) for point in islice(self._points, self.population))

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        self._told.extend(evaluations)
        self._left -= len(evaluations)
        self.population = min(self._most, self._left)

    def _next(self, number: int) -> Genome | None:
        point = next(self._points, None)
        return None if point is None else Genome(point)

    def _learn_one(self, evaluation: Evaluation) -> None:
        self._told.append(evaluation)


def _values(gene: Gene, levels: int) -> list[float]:
    if gene.choices:
        return [(number + 0.5) / len(gene.choices) for number in range(len(gene.choices))]
    return [number / (levels - 1) for number in range(levels)]


def build(config: GridConfig, problem: Problem) -> Grid:
    """As the configuration describes it."""
    return Grid(genes=problem.space.genes, levels=config.levels, population=config.population)
