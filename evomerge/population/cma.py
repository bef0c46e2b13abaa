"""CMA-ES on the weighted mean of the objectives, full or diagonal: the adapter around `cmaes`.

The library is imported with the first generation: it loads much of scipy, and `evomerge check` only builds algorithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.population.base import FEWEST_EARLIER, Algorithm, Evaluation, Handover, Problem
from evomerge.population.latent import Distribution, Floats, to_genome, to_latent, weighted_mean
from evomerge.rng import derive_seed
from evomerge.spaces import Genome

if TYPE_CHECKING:
    import cmaes

    from evomerge.config import CmaConfig, SepCmaConfig

__all__ = ["Cma", "build", "learned_from"]

_WIDEST = 1.0
"""Standard deviation at which samples are spread over more than one fold of the sine, so that costs say nothing."""

_WIDEST_ADAPTED = 0.4
"""The same for adapted learning rates: they widen a distribution that learns little, and so it learns less."""

_NARROWEST = 1e-12
"""Axes shorter than that count as so long."""

_BROADENING = 0.1
"""Standard deviation around each of the earlier genomes that say where to begin."""


def learned_from(evaluations: Sequence[Evaluation], weights: tuple[float, ...]) -> Distribution:
    """Where the best tenth of an earlier run lies, as a first distribution.

    Nomura et al. 2021, "Warm Starting CMA-ES for Hyperparameter Optimization", with gamma and alpha of 0.1.

    Args:
        evaluations: of an earlier run over the same genes.
        weights: one per objective.

    Raises:
        ValueError: fewer than `FEWEST_EARLIER` evaluations.
    """
    if len(evaluations) < FEWEST_EARLIER:
        raise ValueError(f"a warm start needs at least {FEWEST_EARLIER} evaluations; got {len(evaluations)}")
    import cmaes

    solutions = [(to_latent(told.genome), weighted_mean(told.costs, weights)) for told in evaluations]
    mean, sigma, covariance = cmaes.get_warm_start_mgd(solutions, gamma=1 / FEWEST_EARLIER, alpha=_BROADENING)
    return Distribution(mean=mean, sigma=float(sigma), covariance=covariance)


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
        diagonal: keep variances only (Ros and Hansen 2008, sep-CMA-ES): a generation costs O(d), and less is learned.
        lr_adapt: let learning rates follow the signal-to-noise ratio (Nomura et al. 2023); not with `diagonal`.
        learned: a first distribution that takes the place of `start` and, until a restart, of `sigma`; its covariance
            counts by its diagonal with `diagonal`.
    """

    def __init__(
        self,
        *,
        start: Genome,
        weights: tuple[float, ...],
        population: int,
        sigma: float,
        seed: int,
        diagonal: bool = False,
        lr_adapt: bool = False,
        learned: Distribution | None = None,
    ) -> None:
        self.population = population
        self._weights = weights
        self._sigma = sigma
        self._seed = seed
        self._diagonal = diagonal and len(start) > 1  # the library's diagonal form needs two dimensions
        self._lr_adapt = lr_adapt
        self._restarts = 0
        self._first = learned or Distribution(mean=to_latent(start), sigma=sigma)
        self._mean = self._first.mean
        self._latents: list[Floats] = []
        self._last: list[Genome] = []
        self._guest: Evaluation | None = None

    @cached_property
    def _optimizer(self) -> cmaes.CMA | cmaes.SepCMA:
        return self._begin(self._first)

    @property
    def mean(self) -> Floats:
        """`(d,)`: mean of the distribution, in latent space."""
        return self._mean

    def handover(self) -> Handover:
        """See `Algorithm.handover`; with the distribution."""
        full = self._optimizer._C if not self._diagonal else np.diag(np.asarray(self._optimizer._C))
        spread = Distribution(mean=self._mean, sigma=float(self._optimizer._sigma), covariance=np.array(full))
        return Handover(genomes=self.answer(), spreads=(spread,))

    def state(self) -> dict[str, float]:
        """See `Algorithm.state`: the step size, how much longer the longest axis is, and how often it began anew."""
        variances = np.asarray(self._optimizer._C)
        scales = np.sqrt(variances if self._diagonal else np.abs(np.linalg.eigvalsh(variances)))
        return {
            "sigma": float(self._optimizer._sigma),
            "axis ratio": float(scales.max() / max(scales.min(), _NARROWEST)),
            "restarts": float(self._restarts),
        }

    def invite(self, guest: Evaluation) -> None:
        """Let a better genome from elsewhere take the place of the worst, once, in the coming `tell`.

        It counts as a sample of this distribution in its direction, no farther from the mean than the farthest real one
        (Hansen 2011, "Injecting external solutions into CMA-ES").
        """
        self._guest = guest

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return tuple(dict.fromkeys([to_genome(self._mean), *self._last])) if self._last else ()

    def _propose(self) -> tuple[Genome, ...]:
        self._latents = [self._optimizer.ask() for _ in range(self.population)]
        return tuple(to_genome(latent) for latent in self._latents)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        costs = [weighted_mean(evaluation.costs, self._weights) for evaluation in evaluations]
        order = sorted(range(len(costs)), key=costs.__getitem__)
        self._last = [evaluations[i].genome for i in order]
        if self._guest is not None:
            self._latents[order[-1]] = self._drawn_near(to_latent(self._guest.genome))
            costs[order[-1]] = weighted_mean(self._guest.costs, self._weights)
            self._guest = None
        if costs[order[0]] == costs[order[-1]] or not self._update(costs):
            self._restarts += 1
            self._optimizer = self._begin(Distribution(mean=self._mean, sigma=self._sigma))

    def _update(self, costs: list[float]) -> bool:
        """Move the distribution; False if it is of no more use."""
        with np.errstate(all="ignore"):  # a singular covariance divides by 0 here, and is then replaced
            self._optimizer.tell(list(zip(self._latents, costs, strict=True)))  # a copy: the library sorts it
            if not np.isfinite(self._optimizer.mean).all():
                return False
            spread = np.sqrt(np.mean((np.array(self._latents) - self._mean) ** 2))
            self._mean = self._optimizer.mean.copy()
            widest = max(_WIDEST_ADAPTED if self._lr_adapt else _WIDEST, 2.0 * self._sigma)
            return bool(spread <= widest) and not self._optimizer.should_stop()

    def _drawn_near(self, latent: Floats) -> Floats:
        farthest = max(float(np.linalg.norm(sample - self._mean)) for sample in self._latents)
        step = latent - self._mean
        drawn: Floats = self._mean + step * min(1.0, farthest / max(float(np.linalg.norm(step)), 1e-300))
        return drawn

    def _begin(self, first: Distribution) -> cmaes.CMA | cmaes.SepCMA:
        import cmaes

        seed = derive_seed(self._seed, "cma", self._restarts) & 0xFFFFFFFF  # all that a RandomState takes
        common = {"mean": first.mean.copy(), "sigma": first.sigma, "population_size": self.population, "seed": seed}
        if self._diagonal:
            optimizer = cmaes.SepCMA(**common)
            if first.covariance is not None:
                optimizer._C = np.diag(first.covariance).copy()  # the library takes none
            return optimizer
        return cmaes.CMA(**common, cov=first.covariance, lr_adapt=self._lr_adapt)


def build(config: CmaConfig | SepCmaConfig, problem: Problem) -> Cma:
    """Full or diagonal, by the configuration's kind."""
    left = next(iter(problem.handover.spreads), None) if problem.handover else None
    return Cma(
        start=problem.space.start,
        weights=problem.weights,
        population=config.population,
        sigma=config.sigma,
        seed=problem.seed,
        diagonal=config.kind == "sep_cma",
        lr_adapt=config.kind == "cma" and config.lr_adapt,
        learned=learned_from(problem.earlier, problem.weights) if problem.earlier else left,
    )
