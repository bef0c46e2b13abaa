"""An evolution strategy on paths through layers, by moves that know what a path is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.pareto import crowding_distance, nondominated, shortlist
from evomerge.population.base import Evaluation, Problem, SteadyAlgorithm
from evomerge.population.latent import Floats
from evomerge.population.moves import moved
from evomerge.rng import stream
from evomerge.spaces import Genome
from evomerge.spaces.routing import RoutingSpace

if TYPE_CHECKING:
    from evomerge.config import GraftConfig

__all__ = ["Graft", "build"]

_IMMIGRANTS = 0.1
"""Share of a generation that comes from a known path instead of a parent."""

_TRIES = 20
"""How often a child is drawn again that was proposed before."""

_SIGMA = 0.1
"""Standard deviation of a change of a merge's gene, as a share of its range."""


@final
class Graft(SteadyAlgorithm):
    """(mu + lambda), where mu is half of lambda: children differ from a parent by one move, the best of both survive.

    The first generation holds the space's known paths, and moves away from the first of them for the rest. Later ones
    hold a tenth of immigrants, some moves away from any known path, and a sixth of survivors once more, those that were
    evaluated least. Genomes are compared by their mean cost and its standard error together, by what repeats say of
    noise, so that luck does not survive for long. No others are proposed twice while moves find new ones. Where a merge
    is searched too, moves change its genes, the path or both.

    Without generations, survivors are chosen anew after each genome, and nobody is evaluated again while a repeat is on
    its way.

    With several objectives survivors are chosen by rank and crowding distance, as in NSGA-II. Answers with the
    survivors, best first; with their front, if there are several objectives.

    Args:
        space: the paths.
        objectives: number of costs of each genome.
        population: genomes per generation.
        seed: seed of the run.
    """

    def __init__(self, *, space: RoutingSpace, objectives: int, population: int, seed: int) -> None:
        self.population = population
        self._space = space
        self._objectives = objectives
        self._seed = seed
        self._generation = 0
        self._survivors: list[Genome] = []
        self._costs: dict[Genome, Floats] = {}  # means
        self._squares: dict[Genome, Floats] = {}  # sums of squared differences from them
        self._times = Counter[Genome]()

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        if self._objectives == 1:
            return tuple(self._survivors)
        return tuple(self._survivors[i] for i in shortlist([self._costs[genome] for genome in self._survivors]))

    def _propose(self) -> tuple[Genome, ...]:
        genomes = list(self._space.known[: self.population])
        if self._generation:
            genomes = sorted(self._survivors, key=self._times.__getitem__)[: max(self.population // 6, 1)]
        for slot in range(len(genomes), self.population):
            genomes.append(self._new(self._generation, slot, genomes))
        return tuple(genomes)

    def _next(self, number: int) -> Genome:
        generation, slot = divmod(number, self.population)
        if number < min(len(self._space.known), self.population):
            return self._space.known[number]
        resting = [genome for genome in self._survivors if genome not in self._flying]
        if generation and slot < max(self.population // 6, 1) and resting:
            return min(resting, key=self._times.__getitem__)
        return self._new(generation, slot, self._flying)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        self._select(evaluations)
        self._generation += 1

    def _learn_one(self, evaluation: Evaluation) -> None:
        self._select([evaluation])

    def _select(self, evaluations: Sequence[Evaluation]) -> None:
        for evaluation in evaluations:
            self._note(evaluation.genome, np.array(evaluation.costs))
        rivals = list(dict.fromkeys([*self._survivors, *(evaluation.genome for evaluation in evaluations)]))
        errors = self._noise() / np.sqrt([[self._times[rival]] for rival in rivals])
        order = _best_first(np.array([self._costs[rival] for rival in rivals]) + errors)
        self._survivors = [rivals[i] for i in order[: self.population // 2]]

    def _note(self, genome: Genome, costs: Floats) -> None:
        """Add to mean and squares (Welford 1962)."""
        self._times[genome] += 1
        before = self._costs.get(genome, costs)
        self._costs[genome] = before + (costs - before) / self._times[genome]
        with np.errstate(over="ignore"):
            spread = (costs - before) * (costs - self._costs[genome])
        self._squares[genome] = self._squares.get(genome, np.zeros(len(costs))) + spread

    def _noise(self) -> Floats:
        """`(objectives,)`: standard deviation of a cost over repeats; 0 before there are any."""
        spare = sum(self._times.values()) - len(self._times)
        noise = np.sqrt(sum(self._squares.values(), np.zeros(self._objectives)) / max(spare, 1))
        return np.where(np.isfinite(noise), noise, 0.0)

    def _new(self, generation: int, slot: int, beside: Sequence[Genome]) -> Genome:
        """A genome that was not proposed before, if one is found."""
        random = stream(self._seed, "graft", generation, slot)
        children = (self._child(generation, slot, random) for _ in range(_TRIES))
        child = self._space.start
        for child in children:
            if child not in self._costs and child not in beside:
                break
        return child

    def _child(self, generation: int, slot: int, random: np.random.Generator) -> Genome:
        if generation == 0 or not self._survivors:
            return self._moved(self._space.start, random)
        if slot >= self.population - max(round(_IMMIGRANTS * self.population), 1):
            genome = self._space.known[random.integers(len(self._space.known))]
            for _ in range(random.integers(1, 4)):
                genome = self._moved(genome, random)
            return genome
        return self._moved(self._survivors[random.integers(len(self._survivors))], random)

    def _moved(self, genome: Genome, random: np.random.Generator) -> Genome:
        merge = np.array(genome.values[self._space.slots :])
        if not len(merge):
            return self._space.genome_of(moved(self._space.path_of(genome), self._space, random), genome)
        what = random.integers(3)
        if what < 2:
            merge = np.clip(merge + _SIGMA * random.standard_normal(len(merge)), 0.0, 1.0)
            genome = Genome((*genome.values[: self._space.slots], *merge))
        if what > 0:
            genome = self._space.genome_of(moved(self._space.path_of(genome), self._space, random), genome)
        return genome


def _best_first(costs: Floats) -> list[int]:
    """Front after front, each by decreasing crowding distance; with one objective by cost. Ties: the earlier."""
    left, order = list(range(len(costs))), list[int]()
    while left:
        front = [left[i] for i in nondominated(costs[left])]
        lonely = dict(zip(front, crowding_distance(costs[front]), strict=True))
        order += sorted(front, key=lambda i: -lonely[i])
        left = [i for i in left if i not in lonely]
    return order


def build(config: GraftConfig, problem: Problem) -> Graft:
    """As the configuration describes it.

    Raises:
        ValueError: a space of anything but paths.
    """
    if not isinstance(problem.space, RoutingSpace):
        raise ValueError(f"graft searches a routing space; got {type(problem.space).__name__}")
    return Graft(space=problem.space, objectives=problem.objectives, population=config.population, seed=problem.seed)
