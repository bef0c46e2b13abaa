"""CMA-ES with categories on the weighted mean of the objectives: the adapter around `cmaes.CatCMAwM`.

The library is imported with the first generation, as in `evomerge.population.cma`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.population.base import Algorithm, Evaluation, Problem
from evomerge.population.latent import Floats, to_genome, to_latent, weighted_mean
from evomerge.rng import derive_seed
from evomerge.spaces import Gene, Genome

if TYPE_CHECKING:
    import cmaes

    from evomerge.config import CatCmaConfig

__all__ = ["CatCma", "build"]

_WIDEST = 1.0
"""Standard deviation at which samples are spread over more than one fold of the sine, so that costs say nothing."""


@final
class CatCma(Algorithm):
    """CatCMA with margin (Hamano et al. 2025): a Gaussian over numbers, a categorical distribution over each choice.

    What a choice does need not be alike for neighbours in its list. No choice ever dies out. Without choices this is
    CMA-ES. As in `Cma`, a distribution that is of no more use is replaced by one at the old mean, whose choices are
    drawn half by the last votes and half evenly.

    Answers with the distribution mean and the choices that the better half of the last generation votes for; then with
    that generation, best first.

    Args:
        genes: the coordinates; those with `choices` are categories.
        weights: one per objective.
        population: genomes per generation.
        sigma: first step size as a share of each number's range.
        seed: seed of the run.
    """

    def __init__(
        self, *, genes: Sequence[Gene], weights: tuple[float, ...], population: int, sigma: float, seed: int
    ) -> None:
        self.population = population
        self._weights = weights
        self._sigma = sigma
        self._seed = seed
        self._restarts = 0
        self._is_choice = np.array([bool(gene.choices) for gene in genes])
        self._sizes = np.array([len(gene.choices) for gene in genes if gene.choices], dtype=int)
        self._mean = to_latent(Genome(tuple(gene.start for gene in genes)))[~self._is_choice]
        self._even = np.array([[float(k < n) / n for k in range(max(self._sizes))] for n in self._sizes])
        self._votes = self._even
        self._shares = _recombination(population)
        self._samples: list[cmaes.CatCMAwM.Solution] = []
        self._last: list[Genome] = []

    @cached_property
    def _optimizer(self) -> cmaes.CatCMAwM:
        return self._begin()

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return tuple(dict.fromkeys([self._genome(self._mean, self._votes), *self._last])) if self._last else ()

    def state(self) -> dict[str, float]:
        """See `Algorithm.state`: the step size, the mean share of each choice's most voted option, new beginnings."""
        sigma = {"sigma": float(self._optimizer._sigma)} if len(self._mean) else {}
        votes = {"agreement on choices": float(self._votes.max(axis=1).mean())} if self._votes.size else {}
        return {**sigma, **votes, "restarts": float(self._restarts)}

    def _propose(self) -> tuple[Genome, ...]:
        self._samples = [self._optimizer.ask() for _ in range(self.population)]
        return tuple(self._genome(sample.x, sample.c) for sample in self._samples)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        costs = [weighted_mean(evaluation.costs, self._weights) for evaluation in evaluations]
        order = sorted(range(len(costs)), key=costs.__getitem__)
        self._last = [evaluations[i].genome for i in order]
        if costs[order[0]] == costs[order[-1]] or not self._update([self._samples[i] for i in order]):
            self._restarts += 1
            self._optimizer = self._begin()

    def _update(self, best_first: list[cmaes.CatCMAwM.Solution]) -> bool:
        """Move the distribution; False if it is of no more use.

        The library is told ranks, not costs: it measures costs to keep numbers inside bounds, of which there are none
        here, and equal or huge ones would make that NaN.
        """
        with np.errstate(all="ignore"):  # a singular covariance divides by 0 here, and is then replaced
            self._optimizer.tell([(sample, float(rank)) for rank, sample in enumerate(best_first)])
            better = best_first[: len(self._shares)]
            if len(self._sizes):
                self._votes = np.einsum("s,sgk->gk", self._shares, [sample.c for sample in better])
            if not len(self._mean):
                return True
            spread = np.sqrt(np.mean((np.array([sample.x for sample in best_first]) - self._mean) ** 2))
            self._mean = self._shares @ np.array([sample.x for sample in better])
            return bool(spread <= max(_WIDEST, 2.0 * self._sigma)) and not self._optimizer.should_stop()

    def _genome(self, latent: Floats | None, votes: Floats | None) -> Genome:
        """Numbers folded into the box; of each choice the middle of the part that has most votes."""
        values = np.empty(len(self._is_choice))
        if latent is not None and len(latent):
            values[~self._is_choice] = to_genome(latent).values
        if votes is not None and votes.size:
            values[self._is_choice] = (np.argmax(votes, axis=1) + 0.5) / self._sizes
        return Genome(tuple(values))

    def _begin(self) -> cmaes.CatCMAwM:
        import cmaes

        numbers, choices = len(self._mean), len(self._sizes)
        return cmaes.CatCMAwM(
            x_space=[[-np.inf, np.inf]] * numbers or None,
            c_space=self._sizes.tolist() if choices else None,
            population_size=self.population,
            mean=self._mean.copy(),
            sigma=self._sigma,
            cov=np.eye(numbers),
            cat_param=(self._votes + self._even) / 2.0 if choices else None,
            seed=derive_seed(self._seed, "cat cma", self._restarts) & 0xFFFFFFFF,  # all that a RandomState takes
        )


def _recombination(population: int) -> Floats:
    """The share of each of the better half, best first, in the next mean (Hansen 2016, equation 49)."""
    raw = np.array([math.log((population + 1) / 2) - math.log(i + 1) for i in range(population // 2)])
    shares: Floats = raw / raw.sum()
    return shares


def build(config: CatCmaConfig, problem: Problem) -> CatCma:
    """As the configuration describes it."""
    return CatCma(
        genes=problem.space.genes,
        weights=problem.weights,
        population=config.population,
        sigma=config.sigma,
        seed=problem.seed,
    )
