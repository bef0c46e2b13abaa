"""Frank-Wolfe without gradients: steps towards whichever expert helps most when it is tried.

After Chen et al. 2025, "FW-Merging: Scaling Model Merging with Frank-Wolfe Optimization" (arXiv 2503.12649). The paper
picks the expert whose task vector goes along the gradient best, of a loss on data; here every expert's direction is
tried, and the trials of a generation, which answer the same items, say which helps. So a step costs a generation
instead of a backward pass, and nothing but scores is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.population.base import Algorithm, Evaluation, Problem
from evomerge.population.latent import Floats, weighted_mean
from evomerge.rng import stream
from evomerge.spaces import Gene, Genome

if TYPE_CHECKING:
    from evomerge.config import FrankWolfeConfig

__all__ = ["FrankWolfe", "build", "places"]


@final
class FrankWolfe(Algorithm):
    """Moves from a point towards vertices, at the rate 2 / (steps + 2).

    A generation holds the point itself and trials, each towards one vertex, in all genes or in those of one place: all
    at the present rate, then at half of it and so on. If a trial costs less than the point did with the same items, it
    is the next point; else the rate falls all the same.

    Answers with the point, then with the last generation, best first.

    Args:
        start: the first point.
        vertices: genomes to step towards, such as each expert alone.
        parts: genes that move together.
        weights: one per objective.
        population: genomes per generation.
        seed: seed of the run; decides which trials a generation too small for all begins with.
    """

    def __init__(
        self,
        *,
        start: Genome,
        vertices: Sequence[Genome],
        parts: Sequence[Sequence[int]],
        weights: tuple[float, ...],
        population: int,
        seed: int,
    ) -> None:
        self.population = population
        self._vertices = [np.array(vertex.values) for vertex in vertices]
        self._parts = [list(part) for part in parts]
        self._weights = weights
        self._seed = seed
        self._point = start
        self._steps = 0
        self._last: tuple[Genome, ...] = ()

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return tuple(dict.fromkeys([self._point, *self._last])) if self._last else ()

    def _propose(self) -> tuple[Genome, ...]:
        return (self._point, *islice(self._trials(), self.population - 1))

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        costs = [weighted_mean(evaluation.costs, self._weights) for evaluation in evaluations]
        order = sorted(range(len(costs)), key=costs.__getitem__)  # of equal ones the first: the point stays
        self._last = tuple(evaluations[i].genome for i in order)
        self._point = self._last[0]
        self._steps += 1

    def _trials(self) -> Iterator[Genome]:
        rate = 2.0 / (self._steps + 2.0)
        wishes = [(vertex, part) for part in self._parts for vertex in self._vertices]
        random = stream(self._seed, "frank wolfe", self._steps)
        while True:
            for number in random.permutation(len(wishes)):
                vertex, part = wishes[number]
                yield self._towards(vertex, part, rate)
            rate /= 2.0

    def _towards(self, vertex: Floats, part: list[int], rate: float) -> Genome:
        values = np.array(self._point.values)
        values[part] += rate * (vertex[part] - values[part])
        return Genome(tuple(np.clip(values, 0.0, 1.0)))


def places(genes: Sequence[Gene]) -> list[list[int]]:
    """Genes by place: those of one knot, of all experts and modules, together; each other gene alone."""
    found: dict[str, list[int]] = {}
    for number, gene in enumerate(genes):
        last = gene.name.rpartition(".")[2]
        is_knot = last[:1] == "k" and last[1:].isdigit()
        found.setdefault(last if is_knot else gene.name, []).append(number)
    return [*found.values()]


def build(config: FrankWolfeConfig, problem: Problem) -> FrankWolfe:
    """As the configuration describes it."""
    genes = problem.space.genes
    return FrankWolfe(
        start=problem.space.start,
        vertices=problem.founders,
        parts=places(genes) if config.by == "layer" else [range(len(genes))],
        weights=problem.weights,
        population=config.population,
        seed=problem.seed,
    )
