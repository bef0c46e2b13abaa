"""Greedy merging guided by kinship: the best merge in pairs, and the best of all with its least kin.

After Hu et al. 2024, "Exploring Model Kinship for Merging Large Language Models" (arXiv 2410.12613). The paper merges
checkpoints by SLERP and measures kinship as the similarity of their changes to the base; here the distance between
genomes stands for kinship, and a merge is a point between two genomes, so that no candidate need be stored. The paper
stops when the best are all kin; here the search goes on between them, at other shares, until the budget ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.population.base import Algorithm, Evaluation, Problem
from evomerge.population.latent import weighted_mean
from evomerge.rng import stream
from evomerge.spaces import Genome

if TYPE_CHECKING:
    from evomerge.config import KinshipConfig

__all__ = ["Kinship", "build"]


@final
class Kinship(Algorithm):
    """Top-k greedy merging with exploration.

    The first generation holds the given genomes and points between random pairs of them. Later ones hold the middles
    between all pairs of the k best, then the middle between the best and its least kin of all that were told, then
    points between random pairs of the k best. No genome is proposed twice.

    Answers with the k best, by the weighted mean of the scores that they got when they were told.

    Args:
        first: what is merged first, at least two genomes.
        weights: one per objective.
        best: k, at least 2.
        population: genomes per generation.
        seed: seed of the run.
    """

    def __init__(
        self, *, first: Sequence[Genome], weights: tuple[float, ...], best: int, population: int, seed: int
    ) -> None:
        self.population = population
        self._first = tuple(dict.fromkeys(first))
        self._weights = weights
        self._k = best
        self._seed = seed
        self._generation = 0
        self._best: list[tuple[float, Genome]] = []
        self._told: dict[Genome, None] = {}
        self._rows = np.empty((0, len(self._first[0])))

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return tuple(genome for _, genome in self._best)

    def _propose(self) -> tuple[Genome, ...]:
        fresh: dict[Genome, None] = {}
        for genome in self._wishes():
            if genome not in self._told:
                fresh[genome] = None
            if len(fresh) == self.population:
                break
        return tuple(fresh)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        told = [(weighted_mean(e.costs, self._weights), e.genome) for e in evaluations]
        self._best = sorted([*self._best, *told], key=lambda pair: pair[0])[: self._k]
        self._told |= dict.fromkeys(genome for _, genome in told)
        self._rows = np.vstack([self._rows, [genome.values for _, genome in told]])
        self._generation += 1

    def _wishes(self) -> Iterator[Genome]:
        """What is worth proposing, best first, without an end."""
        best = self.answer()
        if best:
            yield from (_between(one, other, 0.5) for one, other in combinations(best, 2))
            farthest = np.argmax(np.linalg.norm(self._rows - best[0].values, axis=1))
            yield _between(best[0], Genome(tuple(self._rows[farthest])), 0.5)
        else:
            yield from self._first
            best = self._first
        random = stream(self._seed, "kinship", self._generation)
        while True:
            one, other = random.choice(len(best), size=2, replace=False)
            yield _between(best[one], best[other], float(random.uniform(-0.5, 1.5)))


def _between(one: Genome, other: Genome, share: float) -> Genome:
    """The point at a share of the way; within the box where the way leads out of it."""
    return Genome(tuple(np.clip(np.array(one.values) * (1.0 - share) + np.array(other.values) * share, 0.0, 1.0)))


def build(config: KinshipConfig, problem: Problem) -> Kinship:
    """As the configuration describes it."""
    return Kinship(
        first=(*problem.seeds, problem.space.start),
        weights=problem.weights,
        best=config.best,
        population=config.population,
        seed=problem.seed,
    )
