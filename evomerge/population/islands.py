"""Islands of CMA-ES that each look at another corner of the objectives, and exchange their best."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.pareto import nondominated, shortlist
from evomerge.population.base import Algorithm, Evaluation, Handover, Problem
from evomerge.population.cma import Cma
from evomerge.population.latent import Distribution, Floats, to_genome
from evomerge.rng import derive_seed
from evomerge.spaces import Genome

if TYPE_CHECKING:
    from evomerge.config import IslandsConfig

__all__ = ["Islands", "build"]

_AUGMENTATION = 0.05
"""What the sum of all objectives counts beside an island's own aim, so that none is given up for nothing."""

_STEPS = (0.5, 0.25, 0.75)
"""Shares of the way from the middle to a corner at which answers lie, too."""


@final
class Islands(Algorithm):
    """One diagonal CMA-ES for each objective and one for the middle of the front.

    An island minimizes the augmented Chebyshev distance to the best costs of the generation, each objective scaled by
    the range of the generation's front (Steuer 1986), with its own weights. A generation is scored on the same items by
    all islands, so its costs compare: an island whose aim is met better elsewhere invites that genome (`Cma.invite`).

    Answers with the means of the islands, the middle first; then with points at equal steps between the middle and each
    corner, near which the optimal genomes lie where the objectives bend smoothly; then with the front of the last
    generation. Means, and what lies between them, were never scored, but owe less to luck than what was.

    Args:
        start: first mean of all islands.
        objectives: number of costs of each genome, at least 2.
        population: genomes per generation, shared as evenly as can be.
        sigma: first step size as a share of each gene's range.
        seed: seed of the run.
        learned: first distributions of the first islands, in place of start and sigma.
    """

    def __init__(
        self,
        *,
        start: Genome,
        objectives: int,
        population: int,
        sigma: float,
        seed: int,
        learned: Sequence[Distribution] = (),
    ) -> None:
        self.population = population
        self._aims: Floats = np.vstack([np.full((1, objectives), 1.0 / objectives), np.eye(objectives)])
        bounds = np.linspace(0, population, len(self._aims) + 1).round().astype(int)
        self._places = [slice(first, last) for first, last in pairwise(bounds.tolist())]
        self._islands = [
            Cma(
                start=start,
                weights=(1.0,),
                population=place.stop - place.start,
                sigma=sigma,
                seed=derive_seed(seed, "island", number),
                diagonal=True,
                learned=first,
            )
            for number, (place, first) in enumerate(zip_longest(self._places, learned[: len(self._places)]))
        ]
        self._last: Sequence[Evaluation] = ()

    def handover(self) -> Handover:
        """See `Algorithm.handover`; with the islands' distributions."""
        spreads = (spread for island in self._islands for spread in island.handover().spreads)
        return Handover(genomes=self.answer(), spreads=tuple(spreads))

    def state(self) -> dict[str, float]:
        """See `Algorithm.state`: the islands' step sizes, the middle of the front first, and all new beginnings."""
        found = [island.state() for island in self._islands]
        places = ["the middle", *(f"objective {number}" for number in range(1, len(found)))]
        sigmas = {f"sigma, {place}": state["sigma"] for place, state in zip(places, found, strict=True)}
        return {**sigmas, "restarts": sum(state["restarts"] for state in found)}

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        if not self._last:
            return ()
        middle, *corners = (island.mean for island in self._islands)
        steps = [middle + (corner - middle) * step for step in _STEPS for corner in corners]
        front = [self._last[i].genome for i in shortlist([evaluation.costs for evaluation in self._last])]
        return tuple(dict.fromkeys([*map(to_genome, [middle, *corners, *steps]), *front]))

    def _propose(self) -> tuple[Genome, ...]:
        return tuple(genome for island in self._islands for genome in island.ask())

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        distances = _distances(np.array([evaluation.costs for evaluation in evaluations]), self._aims)
        for island, place, column in zip(self._islands, self._places, distances.T, strict=True):
            told = [Evaluation(genome=e.genome, costs=(float(c),)) for e, c in zip(evaluations, column, strict=True)]
            best = int(column.argmin())
            if column[best] < column[place].min():
                island.invite(told[best])
            island.tell(told[place])
        self._last = evaluations


def _distances(costs: Floats, aims: Floats) -> Floats:
    """`(n, islands)`: augmented Chebyshev distances to the ideal point, for each row of weights."""
    scale = np.abs(costs).max(axis=0)
    costs = costs / np.where(scale > 0.0, scale, 1.0)  # so that ranges of huge costs do not overflow
    front = costs[nondominated(costs)]
    span = np.ptp(front, axis=0)
    gaps = (costs - front.min(axis=0)) / np.where(span > 1e-12, span, 1.0)
    distances: Floats = (gaps[:, None, :] * aims).max(axis=2) + _AUGMENTATION * gaps.sum(axis=1, keepdims=True)
    return distances


def build(config: IslandsConfig, problem: Problem) -> Islands:
    """As the configuration describes it."""
    return Islands(
        start=problem.space.start,
        objectives=problem.objectives,
        population=config.population,
        sigma=config.sigma,
        seed=problem.seed,
        learned=problem.handover.spreads if problem.handover else (),
    )
