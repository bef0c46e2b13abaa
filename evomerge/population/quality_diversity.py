"""Quality diversity on all objectives, one grid of elites for each: the adapter around `pyribs`.

After Kuroki et al. 2024, "Agent Skill Acquisition for Large Language Models via CycleQD" (arXiv 2410.14735): in an
objective's grid, that objective is the quality and the others are the behaviour; each generation improves another one.
The paper merges the task vectors of two elites and shakes them along the experts' singular vectors; here children are
drawn on and around the line between two elites' genomes (Vassiliades and Mouret 2018, "iso+line"), which needs no
weights. The paper's grids span fixed scores; here they span what was found, and are filled again when that grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import require_installed
from evomerge.pareto import nondominated, shortlist
from evomerge.population.base import Algorithm, Evaluation, Problem
from evomerge.population.latent import Floats
from evomerge.rng import stream
from evomerge.spaces import Genome

if TYPE_CHECKING:
    from ribs.archives import GridArchive

    from evomerge.config import QdConfig

__all__ = ["QualityDiversity", "build"]

_ISO, _LINE = 0.05, 0.2
"""Standard deviations around a parent, as a share of each gene's range, and along the line to the other one."""

_SLOPE = (0.5, 1.3)
"""What the worst and the best of a grid count, in quality and in each behaviour, when parents are drawn (CycleQD)."""


@final
class QualityDiversity(Algorithm):
    """MAP-Elites on as many grids as there are objectives, in turn.

    The first generation is uniform but for the start. Each candidate is offered to all grids. A grid spans its
    behaviours from the worst to the best of the front; what lies beyond is put into the cells at the border.

    Answers with the front of all elites: the knee first, then the loneliest.

    Args:
        start: a genome of the first generation.
        objectives: number of costs of each genome, at least 2.
        bins: cells along each axis.
        population: genomes per generation.
        seed: seed of the run.
    """

    def __init__(self, *, start: Genome, objectives: int, bins: int, population: int, seed: int) -> None:
        self.population = population
        self._start = start
        self._bins = bins
        self._seed = seed
        self._generation = 0
        self._genomes: Floats = np.empty((0, len(start)))
        self._costs: Floats = np.empty((0, objectives))
        self._spans: Floats = np.empty((2, objectives))
        self._grids: list[GridArchive] = []

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        if not self._grids:
            return ()
        elites = np.unique(np.concatenate([_numbers(grid) for grid in self._grids]))
        return tuple(dict.fromkeys(Genome(tuple(self._genomes[elites[i]])) for i in shortlist(self._costs[elites])))

    def _propose(self) -> tuple[Genome, ...]:
        random = stream(self._seed, "quality diversity", self._generation)
        if not self._grids:
            rows = random.random((self.population, len(self._start)))
            rows[0] = self._start.values
        else:
            first, second = self._parents(random), self._parents(random)
            along = _LINE * random.standard_normal((self.population, 1)) * (second - first)
            rows = first + _ISO * random.standard_normal(first.shape) + along
        return tuple(Genome(tuple(row)) for row in np.clip(rows, 0.0, 1.0))

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        before = len(self._genomes)
        self._genomes = np.vstack([self._genomes, [evaluation.genome.values for evaluation in evaluations]])
        self._costs = np.vstack([self._costs, [evaluation.costs for evaluation in evaluations]])
        self._generation += 1
        front = self._costs[nondominated(self._costs)]
        spans = np.array([front.min(axis=0), front.max(axis=0)])
        if self._grids and np.array_equal(spans, self._spans):
            self._offer(before)
        else:
            self._spans = spans
            self._grids = [self._empty() for _ in range(self._costs.shape[1])]
            self._offer(0)

    def _parents(self, random: np.random.Generator) -> Floats:
        """`(population, d)`: elites of the grid whose turn it is; likelier, the better they are at everything."""
        grid = self._grids[self._generation % len(self._grids)]
        numbers = _numbers(grid)
        costs = self._costs[numbers]
        low, high = costs.min(axis=0), costs.max(axis=0)
        merit = (high - costs) / np.where(high > low, high - low, 1.0)
        chance = (_SLOPE[0] + (_SLOPE[1] - _SLOPE[0]) * merit).prod(axis=1)
        chosen = random.choice(numbers, size=self.population, p=chance / chance.sum())
        return np.asarray(self._genomes[chosen])

    def _empty(self) -> GridArchive:
        from ribs.archives import GridArchive

        axes = self._costs.shape[1] - 1
        return GridArchive(solution_dim=1, dims=[self._bins] * axes, ranges=[(0.0, 1.0)] * axes)

    def _offer(self, first: int) -> None:
        """Candidates from a number on, to all grids."""
        numbers, costs = np.arange(first, len(self._costs)), self._costs[first:]
        low, high = self._spans
        with np.errstate(over="ignore"):  # what is far beyond the front lies at the border anyway
            behaviours = np.clip((high - costs) / np.where(high > low, high - low, 1.0), 0.0, 1.0)
        for task, grid in enumerate(self._grids):
            grid.add(numbers[:, None], -costs[:, task], np.delete(behaviours, task, axis=1))


def _numbers(grid: GridArchive) -> NDArray[np.int64]:
    """Which candidates a grid holds: their numbers are all that it is given."""
    return np.asarray(grid.data("solution")[:, 0], dtype=np.int64)


def build(config: QdConfig, problem: Problem) -> QualityDiversity:
    """As the configuration describes it.

    Raises:
        MissingExtraError: pyribs is not installed.
    """
    require_installed("ribs", "qd")
    return QualityDiversity(
        start=problem.space.start,
        objectives=problem.objectives,
        bins=config.bins,
        population=config.population,
        seed=problem.seed,
    )
