"""M2N2 (arXiv 2508.16204): an archive in which models compete for items and mate with those who solve what they fail.

The heart is three pure functions of a matrix of item scores; the class around them breeds generations.

Legend: n members of the archive, m items; `S[x, j]` score of member x on item j, 0 to 1, NaN where it was not asked;
`c_j` capacity of item j, what all who solve it share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from evomerge.pareto import nondominated, shortlist
from evomerge.population.base import Crossing, Evaluation, Item, Problem, SteadyAlgorithm
from evomerge.rng import stream
from evomerge.spaces import Breeding, Genome

if TYPE_CHECKING:
    from evomerge.config import M2n2Config

__all__ = ["M2n2", "Member", "attraction", "competition", "survivors"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """Someone in the archive.

    Attributes:
        costs: one per objective, lower is better.
        items: see `Evaluation.items`.
    """

    genome: Genome
    costs: tuple[float, ...]
    items: Mapping[Item, float]


def competition(scores: Floats, capacity: Floats, *, alpha: float = 1.0) -> Floats:
    """What each member takes of every item: `c_j S[x, j] / z_j^alpha`, with `z_j` the sum of the scores (section 3).

    Members that were not asked are taken to score like those who were, on the mean: `z_j` is n times the mean score.

    Args:
        scores: `S`, `[n, m]`.
        capacity: `[m]`.
        alpha: how hard items are fought for; 0: not at all, as in a plain genetic algorithm.

    Returns:
        `[n, m]`, NaN where `scores` is. Mean over a row: the member's shared fitness, up to a factor m.
    """
    asked = ~np.isnan(scores)
    load = len(scores) * np.where(asked, scores, 0.0).sum(axis=0) / np.maximum(asked.sum(axis=0), 1)
    taken: Floats = capacity * scores / np.where(load > 0.0, load, 1.0) ** alpha
    return taken


def attraction(taken: Floats, first: int) -> Floats:
    """How attractive every member is to one: the mean, over items both were asked, of what it takes beyond that one.

    Args:
        taken: `[n, m]`, see `competition`.
        first: the one.

    Returns:
        `[n]`, nowhere negative; zero for all others if nobody complements the one.
    """
    return _mean(np.maximum(taken - taken[first], 0.0))


def survivors(archive: Sequence[Member], size: int, *, weights: Sequence[float], alpha: float) -> tuple[Member, ...]:
    """The archive without those whose shared fitness is lowest, one after another; of equals the eldest goes first.

    Args:
        archive: members, the eldest first.
        size: most members that stay.
        weights: capacity of the items of each objective.
        alpha: see `competition`.
    """
    kept = list(archive)
    while len(kept) > size:
        scores, capacity = _matrix(kept, weights)
        del kept[int(_mean(competition(scores, capacity, alpha=alpha)).argmin())]
    return tuple(kept)


def _mean(values: Floats) -> Floats:
    """Means of rows over what is not NaN; 0 where all is."""
    asked = ~np.isnan(values)
    means: Floats = np.where(asked, values, 0.0).sum(axis=1) / np.maximum(asked.sum(axis=1), 1)
    return means


def _matrix(archive: Sequence[Member], weights: Sequence[float]) -> tuple[Floats, Floats]:
    """Scores from 0 to 1 `[n, m]` and capacities `[m]` of every item that somebody was asked.

    An objective whose scores leave that range is scaled by the lowest and highest of its scores in the archive.
    """
    items = sorted({item for member in archive for item in member.items})
    scores = np.array([[member.items.get(item, np.nan) for item in items] for member in archive])
    objectives = np.array([objective for objective, *_ in items], dtype=int)
    for objective in np.unique(objectives):
        columns = np.flatnonzero(objectives == objective)
        low, high = np.nanmin(scores[:, columns]), np.nanmax(scores[:, columns])
        if low < 0.0 or high > 1.0:
            scores[:, columns] = (scores[:, columns] - low) / max(high - low, 1e-300)
    return scores, np.array(weights)[objectives]


@final
class M2n2(SteadyAlgorithm):
    """Model Merging of Natural Niches, by generations or, as in the paper, one child at a time.

    The first genomes are its founders, those that the space knows; a generation that they do not fill is filled with
    children of two of them. From then on, a first parent is drawn by shared fitness, a second one by its attraction to
    the first, and the child is crossed at a random split with a random share. A generation is bred from one archive;
    its members then enter the archive one at a time, in order, each driving out whoever has the lowest shared fitness.
    Without generations, each child is bred from the archive of the moment.

    Who failed, or breaks a constraint, answered nothing here and never enters. While fewer than two are in the archive,
    parents are drawn from the founders. Items that members were not asked (races, fresh draws) do not count for or
    against them; members of different draws meet on few items, so that a fixed draw suits this algorithm best.

    Answers with the archive, front after front.

    Args:
        space: breeds.
        weights: one per objective, the capacity of its items.
        population: genomes per generation.
        archive: most members of the archive.
        alpha: see `competition`.
        mutation: standard deviation of what is added to every gene of a child, as a share of its range.
        seed: seed of the run.
    """

    reads_items = True

    def __init__(
        self,
        *,
        space: Breeding,
        weights: tuple[float, ...],
        population: int,
        archive: int,
        alpha: float,
        mutation: float,
        seed: int,
    ) -> None:
        self.population = population
        self._space, self._founders, self._weights, self._size = space, space.known, weights, archive
        self._alpha, self._mutation, self._seed = alpha, mutation, seed
        self._generation = 0
        self._archive: tuple[Member, ...] = ()
        self._crossings: tuple[Crossing | None, ...] = ()

    @property
    def lineage(self) -> tuple[Crossing | None, ...]:
        """See `Algorithm.lineage`."""
        return self._crossings

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        left = list(self._archive)
        found: list[Genome] = []
        while left:
            costs = [member.costs for member in left]
            found += [left[i].genome for i in shortlist(costs)]
            front = set(nondominated(costs))
            left = [member for i, member in enumerate(left) if i not in front]
        return tuple(dict.fromkeys(found))

    def _propose(self) -> tuple[Genome, ...]:
        first = self._generation * self.population
        founders = self._founders[first : first + self.population]
        taken = self._taken()
        places = [(self._generation, slot) for slot in range(len(founders), self.population)]
        crossings = [self._mate(*place, taken) for place in places]
        self._crossings = (*(None for _ in founders), *crossings)
        children = [self._child(crossing, *place) for crossing, place in zip(crossings, places, strict=True)]
        return (*founders, *children)

    def _next(self, number: int) -> Genome:
        if number < len(self._founders):
            self._crossings = (None,)
            return self._founders[number]
        place = divmod(number, self.population)
        crossing = self._mate(*place, self._taken())
        self._crossings = (crossing,)
        return self._child(crossing, *place)

    def _taken(self) -> Floats | None:
        """What each member takes of every item; None if there are no members."""
        return competition(*_matrix(self._archive, self._weights), alpha=self._alpha) if self._archive else None

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        for told in evaluations:
            self._learn_one(told)
        self._generation += 1

    def _learn_one(self, evaluation: Evaluation) -> None:
        if evaluation.items:
            others = [member for member in self._archive if member.genome != evaluation.genome]
            child = Member(genome=evaluation.genome, costs=evaluation.costs, items=evaluation.items)
            self._archive = survivors([*others, child], self._size, weights=self._weights, alpha=self._alpha)

    def _mate(self, generation: int, slot: int, taken: Floats | None) -> Crossing:
        random = stream(self._seed, "m2n2 parents", generation, slot)
        first, second = self._parents(random, taken)
        split, share = int(random.integers(self._space.splits)), float(random.random())
        return Crossing(first=first, second=second, split=split, share=share)

    def _parents(self, random: np.random.Generator, taken: Floats | None) -> tuple[Genome, Genome]:
        if taken is None or len(taken) < 2:
            one, other = random.choice(len(self._founders), size=2, replace=False)
            return self._founders[one], self._founders[other]
        one = _drawn(random, _mean(taken), range(len(taken)))
        other = _drawn(random, attraction(taken, one), [i for i in range(len(taken)) if i != one])
        return self._archive[one].genome, self._archive[other].genome

    def _child(self, crossing: Crossing, generation: int, slot: int) -> Genome:
        child = self._space.cross(crossing.first, crossing.second, split=crossing.split, share=crossing.share)
        if self._mutation == 0.0:
            return child
        noise = stream(self._seed, "m2n2 mutation", generation, slot).standard_normal(len(child))
        return Genome(tuple(np.clip(np.array(child.values) + self._mutation * noise, 0.0, 1.0)))


def _drawn(random: np.random.Generator, chances: Floats, candidates: Sequence[int]) -> int:
    """One of the candidates, in proportion to its chance; any of them where all chances are zero."""
    shares = chances[list(candidates)]
    total = shares.sum()
    return int(random.choice(candidates, p=shares / total if total > 0.0 else None))


def build(config: M2n2Config, problem: Problem) -> M2n2:
    """As the configuration describes it.

    Raises:
        TypeError: a space that does not cross.
    """
    if not isinstance(problem.space, Breeding):
        raise TypeError(f"m2n2 needs a space that crosses genomes; got {type(problem.space).__name__}")
    return M2n2(
        space=problem.space,
        weights=problem.weights,
        population=config.population,
        archive=config.archive,
        alpha=config.alpha,
        mutation=config.mutation,
        seed=problem.seed,
    )
