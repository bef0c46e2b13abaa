"""CMA-ES on the weighted mean of the objectives: the adapter around `cmaes`.

The distribution lives in an unbounded latent space and a sine folds its samples into the unit box, so nothing is ever
clipped or resampled at the borders. Unlike a sigmoid, the sine has no plateau where a drifting mean would get lost, and
an optimum on the border is an ordinary point of the latent space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import cmaes
import numpy as np
from numpy.typing import NDArray

from evomerge.population.base import Algorithm, Evaluation
from evomerge.rng import derive_seed
from evomerge.spaces import Genome

__all__ = ["Cma"]

Floats = NDArray[np.float64]

_WIDEST = 1.0
"""Standard deviation at which samples are spread over more than one fold of the sine, so that costs say nothing."""

_EDGE = 0.02
"""How close to the border a start may lie: the sine is flat there, so first steps would have little effect."""


@final
class Cma(Algorithm):
    """CMA-ES with rank-mu update (Hansen 2016, "The CMA Evolution Strategy: A Tutorial").

    The search goes on until the budget ends. When all genomes of a generation cost the same (a plateau, or a
    distribution narrower than the costs can tell apart), when the distribution outgrew the box, or when the library's
    own stopping criteria fire, a new distribution with the first step size takes over at the old mean.

    Answers with the distribution mean, then the last generation, best first. The mean stands first although it was
    never scored: under noise it is better than the best observed genome, whose score is partly luck.

    Args:
        start: first mean; drawn in from the border of the box by 0.02.
        weights: one per objective.
        population: genomes per generation.
        sigma: first step size as a share of each gene's range.
        seed: seed of the run.
    """

    def __init__(self, *, start: Genome, weights: tuple[float, ...], population: int, sigma: float, seed: int) -> None:
        self.population = population
        self._weights = weights
        self._sigma = sigma
        self._seed = seed
        self._restarts = 0
        self._mean = _to_latent(start)
        self._distribution = self._start_here()
        self._latents: list[Floats] = []
        self._last: list[Genome] = []

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return tuple(dict.fromkeys([_to_genome(self._mean), *self._last])) if self._last else ()

    def _propose(self) -> tuple[Genome, ...]:
        self._latents = [self._distribution.ask() for _ in range(self.population)]
        return tuple(_to_genome(latent) for latent in self._latents)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        costs = [_weighted_mean(evaluation.costs, self._weights) for evaluation in evaluations]
        order = sorted(range(len(costs)), key=costs.__getitem__)
        self._last = [evaluations[i].genome for i in order]
        if costs[order[0]] == costs[order[-1]] or not self._update(costs):
            self._restarts += 1
            self._distribution = self._start_here()

    def _update(self, costs: list[float]) -> bool:
        """Move the distribution; False if it is of no more use."""
        with np.errstate(all="ignore"):  # a singular covariance divides by 0 here, and is then replaced
            self._distribution.tell(list(zip(self._latents, costs, strict=True)))  # a copy: the library sorts it
            if not np.isfinite(self._distribution.mean).all():
                return False
            spread = np.sqrt(np.mean((np.array(self._latents) - self._mean) ** 2))
            self._mean = self._distribution.mean.copy()
            return spread <= max(_WIDEST, 2.0 * self._sigma) and not self._distribution.should_stop()

    def _start_here(self) -> cmaes.CMA:
        seed = derive_seed(self._seed, "cma", self._restarts) & 0xFFFFFFFF  # all that a RandomState takes
        return cmaes.CMA(mean=self._mean.copy(), sigma=self._sigma, population_size=self.population, seed=seed)


def _weighted_mean(costs: tuple[float, ...], weights: tuple[float, ...]) -> float:
    return math.fsum(cost * weight for cost, weight in zip(costs, weights, strict=True)) / math.fsum(weights)


def _to_latent(genome: Genome) -> Floats:
    values: Floats = np.clip(np.array(genome.values), _EDGE, 1.0 - _EDGE)
    latent: Floats = np.arcsin(2.0 * values - 1.0) / 2.0
    return latent


def _to_genome(latent: Floats) -> Genome:
    return Genome(tuple(0.5 + 0.5 * np.sin(2.0 * latent)))  # slope 1 at 0.5: latent steps are shares of the range
