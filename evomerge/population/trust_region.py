"""`TrustRegion`: quadratic models of the costs, believed in a box around the front and searched in place of it.

Points of a unit box and their costs. Knows nothing of genomes, nor of what a coordinate stands for.

Legend: d coordinates, m objectives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.pareto import nondominated
from evomerge.population.base import Evaluation
from evomerge.population.genetic import Nsga2
from evomerge.population.latent import Floats
from evomerge.population.quadratic import Quadratic, least_known, tamed, unknowns
from evomerge.rng import derive_seed, stream
from evomerge.spaces import Genome

if TYPE_CHECKING:
    from evomerge.config import Acquisition

__all__ = ["TrustRegion"]

_RADIUS, _SMALLEST = 0.25, 0.02
"""First and least reach of the region beyond the front, as a share of each coordinate's range."""

_SHRINK, _GROW = 0.7, 1.4
"""What the reach is multiplied by after a generation that did not, or did, improve the front."""

_INNER_POPULATION, _INNER_GENERATIONS = 40, 15
"""The search on the models."""

_CANDIDATES = 256
"""Points among which those are picked that the models know least of."""

_DRAWS = 128
"""Models that are drawn from the posterior, each looked at from a direction of its own."""

_BEYOND = 1.0
"""How far beyond the front's worst costs the reference point lies, in units of the costs' spread."""


@final
class TrustRegion:
    """The points that were told, the box in which quadratics fitted to them are believed, and what these propose.

    While there are fewer points than a quadratic has unknowns, it proposes points to fit, in the box. From then on,
    it fits a quadratic to every objective on the points in the box and searches those models with NSGA-II inside it.
    The box is the one around the front, widened by a reach that grows with success; models say nothing of what lies
    beyond.

    Args:
        start: `(d,)`, centre of the first box.
        objectives: m.
        acquisition: `mean` fits to Latin hypercubes and proposes the models' front; `improvement` fits where the
            posterior variance is largest, and proposes what improves the hypervolume most in expectation.
        seed: of its random streams.

    Attributes:
        points: `(n, d)`, in the order told.
        costs: `(n, m)`.
    """

    def __init__(self, *, start: Floats, objectives: int, acquisition: Acquisition, seed: int) -> None:
        self.points: Floats = np.empty((0, len(start)))
        self.costs: Floats = np.empty((0, objectives))
        self._acquisition = acquisition
        self._seed = seed
        self._generation = 0
        self._reach = _RADIUS
        self._low, self._high = _box(start[None], _RADIUS)

    @property
    def unknowns(self) -> int:
        """Points that its models need."""
        return unknowns(self.points.shape[1])

    def propose(self, count: int) -> Floats:
        """`(count, d)`: what to tell next."""
        promising = self.points[:0] if len(self.points) < self.unknowns else self._promising(count)
        return np.vstack([promising, self._to_fit(count - len(promising), promising)])

    def learn(self, points: Floats, costs: Floats) -> None:
        """Take in what was proposed, one point at least."""
        before = len(self.points)
        self.points = np.vstack([self.points, points])
        self.costs = np.vstack([self.costs, costs])
        self._generation += 1
        front = nondominated(self.costs)
        improved = any(i >= before for i in front)
        self._reach = min(max(self._reach * (_GROW if improved else _SHRINK), _SMALLEST), _RADIUS)
        self._low, self._high = _box(self.points[front], self._reach)

    def best(self, weights: tuple[float, ...]) -> Floats:
        """`(d,)`: the point, of the better half by weighted mean, that a model of that mean expects most of.

        What was told best is the luckiest too; a model of all that was told is not taken in by one point.
        """
        means = self.costs @ np.array(weights) / sum(weights)
        half = np.argsort(means, kind="stable")[: (len(means) + 1) // 2]
        expected = Quadratic.fitted(2.0 * self.points - 1.0, tamed(means[:, None])).mean(2.0 * self.points[half] - 1.0)
        chosen: Floats = self.points[half[np.argmin(expected)]]
        return chosen

    def _promising(self, count: int) -> Floats:
        """What to verify; fewer if the models have no more, and nothing where all costs are equal."""
        inside = ((self.points >= self._low) & (self.points <= self._high)).all(axis=1)
        near = inside if inside.sum() > self.points.shape[1] else np.ones_like(inside)
        if not np.ptp(self.costs[near], axis=0).any():
            return self.points[:0]
        points, costs = self._scaled(self.points[near]), tamed(self.costs[near])
        models = Quadratic.fitted(points, costs)
        front, passed = self._searched(models)
        if self._acquisition == "mean":
            return self._unknown(front)[:count]
        found = self._unknown(np.vstack([front, passed]))
        random = stream(self._seed, "map posterior", self._generation)
        drawn = models.drawn(np.vstack([points, self._scaled(found)]), _DRAWS, random)
        reference = costs[nondominated(costs)].max(axis=0) + _BEYOND
        return found[_improving(drawn, len(points), reference, count, random)]

    def _searched(self, models: Quadratic) -> tuple[Floats, Floats]:
        """The models' front, spread, and all that was passed on the way to it."""
        search = Nsga2(
            start=Genome((0.5,) * len(self._low)),
            objectives=self.costs.shape[1],
            population=_INNER_POPULATION,
            seed=derive_seed(self._seed, "map models", self._generation),
        )
        passed: list[Genome] = []
        for _ in range(_INNER_GENERATIONS):
            genomes = search.ask()
            costs = models.mean(2.0 * np.array([genome.values for genome in genomes]) - 1.0)
            told = zip(genomes, costs, strict=True)
            search.tell([Evaluation(genome=genome, costs=tuple(map(float, row))) for genome, row in told])
            passed += genomes
        front, others = (np.array([genome.values for genome in part]) for part in (search.answer(), passed))
        return self._low + (self._high - self._low) * front, self._low + (self._high - self._low) * others

    def _to_fit(self, count: int, others: Floats) -> Floats:
        """Points for the next fit, beside others of the same generation."""
        if self._acquisition == "mean" or not count:
            return self._hypercube(count)
        candidates = self._hypercube(max(_CANDIDATES, count))
        known = np.vstack([self.points, others])
        return candidates[least_known(self._scaled(candidates), self._scaled(known), count)]

    def _hypercube(self, count: int) -> Floats:
        """A Latin hypercube in the region."""
        random = stream(self._seed, "map hypercube", self._generation)
        ranks = random.permuted(np.tile(np.arange(count), (len(self._low), 1)), axis=1).T
        rows: Floats = self._low + (self._high - self._low) * (ranks + random.random(ranks.shape)) / max(count, 1)
        return rows

    def _unknown(self, points: Floats) -> Floats:
        """Those that were not told yet, each once."""
        known = {tuple(row) for row in self.points}
        fresh = [row for row in dict.fromkeys(map(tuple, points)) if row not in known]
        return np.array(fresh).reshape(-1, points.shape[1])

    def _scaled(self, points: Floats) -> Floats:
        """The region as the box from -1 to 1."""
        scaled: Floats = 2.0 * (points - self._low) / (self._high - self._low) - 1.0
        return scaled


def _improving(drawn: Floats, told: int, reference: Floats, count: int, random: np.random.Generator) -> list[int]:
    """The batch of candidates that adds most to the hypervolume, one after the other, in expectation.

    Noisy expected hypervolume improvement (Daulton et al. 2021, arXiv 2105.08195): every draw has its own front of what
    was told, so nothing is won by beating a lucky score. Volumes are means over random directions (Zhang and Golovin
    2020, arXiv 2006.04655, lemma 5), one for each draw: exact in expectation for any number of objectives.

    Args:
        drawn: `(draws, told + candidates, m)` costs.
        told: how many of the points, the first ones, were told.
        reference: `(m,)` cost of a point that is no better than nothing.
        count: candidates to choose; fewer if there are no more.
        random: gives the directions.

    Returns:
        Numbers of candidates, the first one is 0.
    """
    directions = np.maximum(np.abs(random.standard_normal((len(drawn), 1, len(reference)))), 1e-3)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    reaches = np.maximum((reference - drawn) / directions, 0.0).min(axis=2)
    volumes = (reaches / max(float(reaches.max()), 1e-300)) ** len(reference)
    reached, candidates = volumes[:, :told].max(axis=1), volumes[:, told:]
    chosen: list[int] = []
    for _ in range(min(count, candidates.shape[1])):
        gains = np.maximum(candidates - reached[:, None], 0.0).mean(axis=0)
        gains[chosen] = -1.0
        chosen.append(int(np.argmax(gains)))
        reached = np.maximum(reached, candidates[:, chosen[-1]])
    return chosen


def _box(points: Floats, reach: float) -> tuple[Floats, Floats]:
    """Lower and upper corner of the box around some points, widened, within the unit box."""
    return np.maximum(points.min(axis=0) - reach, 0.0), np.minimum(points.max(axis=0) + reach, 1.0)
