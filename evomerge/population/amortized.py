"""Amortised Pareto fronts (MAP): quadratic models of the objectives, searched in place of the models themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.pareto import nondominated, shortlist
from evomerge.population.base import Algorithm, Evaluation, Problem
from evomerge.population.genetic import Nsga2
from evomerge.population.latent import Floats
from evomerge.rng import derive_seed, stream
from evomerge.spaces import Genome

if TYPE_CHECKING:
    from evomerge.config import MapConfig

__all__ = ["Map", "build"]

_RADIUS, _SMALLEST = 0.25, 0.02
"""First and least reach of the trust region beyond the front, as a share of each gene's range."""

_SHRINK, _GROW = 0.7, 1.4
"""What the reach is multiplied by after a generation that did not, or did, improve the front."""

_RIDGE = 1e-4
"""Penalty on coefficients, per observation; keeps the fit unique before there are as many points as unknowns."""

_INNER_POPULATION, _INNER_GENERATIONS = 40, 15
"""The search on the models."""


@final
class Map(Algorithm):
    """Li et al. 2025, "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation".

    The first generations are Latin hypercubes around the start, until there are as many points as a quadratic has
    unknowns. From then on, each generation fits a quadratic to every objective on the points in a trust region,
    searches those models with NSGA-II inside that region, and proposes what it finds for verification. The region is
    the box around the verified front, widened by a reach that grows with success; models say nothing of what lies
    beyond.

    Answers with the verified front: the knee first, then the loneliest. A model's word alone is never an answer.

    Args:
        start: centre of the first region; few genes.
        objectives: number of costs of each genome.
        population: genomes per generation.
        seed: seed of the run.
    """

    def __init__(self, *, start: Genome, objectives: int, population: int, seed: int) -> None:
        self.population = population
        self._objectives = objectives
        self._seed = seed
        self._generation = 0
        self._reach = _RADIUS
        self._low, self._high = _box(np.array([start.values]), _RADIUS)
        self._genomes: Floats = np.empty((0, len(start)))
        self._costs: Floats = np.empty((0, objectives))

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return tuple(dict.fromkeys(Genome(tuple(self._genomes[i])) for i in shortlist(self._costs)))

    def _propose(self) -> tuple[Genome, ...]:
        genes = self._genomes.shape[1]
        unknowns = (genes + 1) * (genes + 2) // 2
        rows = [] if len(self._genomes) < unknowns else self._promising()
        rows += list(self._hypercube(self.population - len(rows)))
        return tuple(Genome(tuple(row)) for row in rows)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        before = len(self._genomes)
        self._genomes = np.vstack([self._genomes, [evaluation.genome.values for evaluation in evaluations]])
        self._costs = np.vstack([self._costs, [evaluation.costs for evaluation in evaluations]])
        self._generation += 1
        front = nondominated(self._costs)
        improved = any(i >= before for i in front)
        self._reach = min(max(self._reach * (_GROW if improved else _SHRINK), _SMALLEST), _RADIUS)
        self._low, self._high = _box(self._genomes[front], self._reach)

    def _promising(self) -> list[Floats]:
        """What is best on the models, spread over their front; less than a generation if there is no more.

        Nothing where all costs are equal.
        """
        inside = ((self._genomes >= self._low) & (self._genomes <= self._high)).all(axis=1)
        near = inside if inside.sum() > self._genomes.shape[1] else np.ones_like(inside)
        if not np.ptp(self._costs[near], axis=0).any():
            return []
        models = _fit(self._scaled(self._genomes[near]), _tamed(self._costs[near]))
        search = Nsga2(
            start=Genome((0.5,) * len(self._low)),
            objectives=self._objectives,
            population=_INNER_POPULATION,
            seed=derive_seed(self._seed, "map models", self._generation),
        )
        for _ in range(_INNER_GENERATIONS):
            genomes = search.ask()
            costs = _terms(2.0 * np.array([genome.values for genome in genomes]) - 1.0) @ models
            told = zip(genomes, costs, strict=True)
            search.tell([Evaluation(genome=genome, costs=tuple(map(float, row))) for genome, row in told])
        known = {tuple(row) for row in self._genomes}
        found = [self._low + (self._high - self._low) * np.array(genome.values) for genome in search.answer()]
        return [row for row in found if tuple(row) not in known][: self.population]

    def _scaled(self, genomes: Floats) -> Floats:
        """The region as the box from -1 to 1."""
        scaled: Floats = 2.0 * (genomes - self._low) / (self._high - self._low) - 1.0
        return scaled

    def _hypercube(self, count: int) -> Floats:
        """A Latin hypercube in the region, its first point the middle when the search begins."""
        random = stream(self._seed, "map hypercube", self._generation)
        ranks = random.permuted(np.tile(np.arange(count), (len(self._low), 1)), axis=1).T
        rows: Floats = self._low + (self._high - self._low) * (ranks + random.random(ranks.shape)) / max(count, 1)
        return rows


def _box(genomes: Floats, reach: float) -> tuple[Floats, Floats]:
    """Lower and upper corner of the box around some genomes, widened, within the unit box."""
    return np.maximum(genomes.min(axis=0) - reach, 0.0), np.minimum(genomes.max(axis=0) + reach, 1.0)


def _terms(points: Floats) -> Floats:
    """`(n, (d + 1)(d + 2) / 2)`: one, the coordinates and their products."""
    first, second = np.triu_indices(points.shape[1])
    return np.hstack([np.ones((len(points), 1)), points, points[:, first] * points[:, second]])


def _tamed(costs: Floats) -> Floats:
    """Costs in units of their spread around the median; what is far out (a failure) is drawn in to 5 of them."""
    scale = np.maximum(np.abs(costs).max(axis=0), 1e-300)
    costs = costs / scale  # so that squares of huge costs do not overflow
    middle = np.median(costs, axis=0)
    spread = np.median(np.abs(costs - middle), axis=0)
    tamed: Floats = np.clip((costs - middle) / np.where(spread > 1e-12, spread, 1.0), -5.0, 5.0)
    return tamed


def _fit(points: Floats, costs: Floats) -> Floats:
    """`(terms, objectives)`: ridge regression that leaves the constant free."""
    terms = _terms(points)
    penalty = _RIDGE * len(points) * np.eye(terms.shape[1])
    penalty[0, 0] = 1e-12
    models = np.linalg.solve(terms.T @ terms + penalty, terms.T @ costs)
    return np.asarray(models, dtype=np.float64)


def build(config: MapConfig, problem: Problem) -> Map:
    """As the configuration describes it."""
    return Map(
        start=problem.space.start, objectives=problem.objectives, population=config.population, seed=problem.seed
    )
