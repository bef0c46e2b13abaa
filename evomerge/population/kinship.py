"""Greedy merging guided by kinship: the best merge in pairs, and the best of all with its least kin.

After Hu et al. 2024, "Exploring Model Kinship for Merging Large Language Models" (arXiv 2410.12613). The paper merges
checkpoints by SLERP and measures kinship as the similarity of their changes to the base; here the distance between
genomes stands for kinship, and a merge is a genome too, so that no candidate need be stored: what the space makes of
two where it crosses genomes, else the point between them. The paper stops when the best are all kin; here the search
goes on between them, at other shares, until the budget ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, repeat
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.population.base import Algorithm, Evaluation, Problem
from evomerge.population.latent import weighted_mean
from evomerge.rng import stream
from evomerge.spaces import Breeding, Genome

if TYPE_CHECKING:
    from evomerge.config import KinshipConfig

__all__ = ["Kinship", "build"]

_TRIES = 1000
"""Merges of random pairs of the best before any two that were told are merged: the best may all be one recipe."""


@final
class Kinship(Algorithm):
    """Top-k greedy merging with exploration.

    The first generation holds the given genomes and merges of random pairs of them. Later ones hold even merges of all
    pairs of the k best, then the even merge of the best and its least kin of all that were told, then merges of random
    pairs of the k best, at random shares. No genome is proposed twice.

    Answers with the k best, by the weighted mean of the scores that they got when they were told.

    Args:
        first: what is merged first, at least two genomes.
        weights: one per objective.
        best: k, at least 2.
        population: genomes per generation.
        seed: seed of the run.
        crossing: the space, if it says what two genomes merge to; shares run from 0 to 1 there, and else from -0.5 to
            1.5, which leads beyond the pair.
    """

    def __init__(
        self,
        *,
        first: Sequence[Genome],
        weights: tuple[float, ...],
        best: int,
        population: int,
        seed: int,
        crossing: Breeding | None = None,
    ) -> None:
        self.population = population
        self._first = tuple(dict.fromkeys(first))
        self._weights = weights
        self._k = best
        self._seed = seed
        self._crossing = crossing
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
            yield from (self._merged(one, other, 0.5) for one, other in combinations(best, 2))
            farthest = np.argmax(np.linalg.norm(self._rows - best[0].values, axis=1))
            yield self._merged(best[0], Genome(tuple(self._rows[farthest])), 0.5)
        else:
            yield from self._first
            best = self._first
        shares = (-0.5, 1.5) if self._crossing is None else (0.0, 1.0)
        random = stream(self._seed, "kinship", self._generation)
        for members in chain(repeat(best, _TRIES), repeat([*self._told] or self._first)):
            one, other = random.choice(len(members), size=2, replace=False)
            yield self._merged(members[one], members[other], float(random.uniform(*shares)))

    def _merged(self, one: Genome, other: Genome, share: float) -> Genome:
        """The merge that the other has so much of; a point beyond the box ends at its border."""
        if self._crossing is not None:
            return self._crossing.cross(one, other, split=0, share=1.0 - share)  # right of the split it is the first's
        return Genome(tuple(np.clip(np.array(one.values) * (1.0 - share) + np.array(other.values) * share, 0.0, 1.0)))


def build(config: KinshipConfig, problem: Problem) -> Kinship:
    """As the configuration describes it."""
    return Kinship(
        first=(*problem.founders, problem.space.start),
        crossing=problem.space if isinstance(problem.space, Breeding) else None,
        weights=problem.weights,
        best=config.best,
        population=config.population,
        seed=problem.seed,
    )
