"""A policy over categories that is rewarded by scores: which model serves each layer, or which level each gene has.

After Han et al. 2025, "Reinforced Model Merging" (arXiv 2503.21272). The paper walks through the layers with PPO, whose
networks see what was chosen so far, over thousands of episodes on a tenth of the data; here the policy is one table of
probabilities, each gene on its own, moved towards the better half of a generation (the cross-entropy method, Rubinstein
1999), because hundreds of evaluations do not feed a network. It learns which choice is good where, not which follow
each other well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.population.base import Algorithm, Evaluation, Problem
from evomerge.population.latent import Floats, weighted_mean
from evomerge.rng import stream
from evomerge.spaces import Gene, Genome

if TYPE_CHECKING:
    from evomerge.config import ReinforcedConfig

__all__ = ["Reinforced", "build"]

_RAREST = 0.02
"""Least probability of a category, times their number: none dies out."""

_HEAD_START = 0.5
"""What the start's categories have of the first policy."""


@final
class Reinforced(Algorithm):
    """Independent categorical distributions, one for each gene, moved towards what the better half of a generation did.

    Choices have their options; numbers are cut into levels, from 0 to 1. Rewards are ranks, so their scale does not
    matter.

    Answers with the most probable genome, then with the last generation, best first.

    Args:
        genes: the coordinates.
        levels: values of each number.
        weights: one per objective.
        rate: how far each generation moves the policy, from 0 to 1.
        population: genomes per generation.
        seed: seed of the run.
    """

    def __init__(
        self,
        *,
        genes: Sequence[Gene],
        levels: int,
        weights: tuple[float, ...],
        rate: float,
        population: int,
        seed: int,
    ) -> None:
        self.population = population
        self._values = [_values(gene, levels) for gene in genes]
        self._weights = weights
        self._rate = rate
        self._seed = seed
        self._generation = 0
        self._policy = [_first(values, gene.start) for values, gene in zip(self._values, genes, strict=True)]
        self._picks = np.empty((0, len(genes)), dtype=int)
        self._last: tuple[Genome, ...] = ()

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        likeliest = self._genome([int(np.argmax(policy)) for policy in self._policy])
        return tuple(dict.fromkeys([likeliest, *self._last])) if self._last else ()

    def _propose(self) -> tuple[Genome, ...]:
        draws = stream(self._seed, "reinforced", self._generation).random((self.population, len(self._policy)))
        columns = [np.searchsorted(np.cumsum(policy[:-1]), draws[:, i]) for i, policy in enumerate(self._policy)]
        self._picks = np.column_stack(columns)
        return tuple(self._genome(row) for row in self._picks.tolist())

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        costs = np.array([weighted_mean(evaluation.costs, self._weights) for evaluation in evaluations])
        order = np.argsort(costs, kind="stable")
        self._last = tuple(evaluations[i].genome for i in order)
        self._generation += 1
        if costs[order[0]] == costs[order[-1]]:
            return
        better = order[: max(1, len(order) // 2)]
        for number, policy in enumerate(self._policy):
            done = np.bincount(self._picks[better, number], minlength=len(policy)) / len(better)
            moved = (1.0 - self._rate) * policy + self._rate * done
            self._policy[number] = (1.0 - _RAREST) * moved + _RAREST / len(policy)

    def _genome(self, picks: Sequence[int]) -> Genome:
        return Genome(tuple(values[pick] for values, pick in zip(self._values, picks, strict=True)))


def _values(gene: Gene, levels: int) -> Floats:
    if gene.choices:
        return (np.arange(len(gene.choices)) + 0.5) / len(gene.choices)
    return np.linspace(0.0, 1.0, levels)


def _first(values: Floats, start: float) -> Floats:
    """Even, but for what lies nearest to the start."""
    policy = np.full(len(values), (1.0 - _HEAD_START) / len(values))
    policy[np.argmin(np.abs(values - start))] += _HEAD_START
    return policy


def build(config: ReinforcedConfig, problem: Problem) -> Reinforced:
    """As the configuration describes it."""
    return Reinforced(
        genes=problem.space.genes,
        levels=config.levels,
        weights=problem.weights,
        rate=config.rate,
        population=config.population,
        seed=problem.seed,
    )
