"""NSGA-II on all objectives: the adapter around `pymoo`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowdingSurvival, binary_tournament
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.selection.tournament import TournamentSelection

from evomerge.pareto import shortlist
from evomerge.population.base import Algorithm, Evaluation
from evomerge.rng import derive_seed, stream
from evomerge.spaces import Genome

__all__ = ["Nsga2"]

_NEAR = 0.1
"""Standard deviation, as a share of each gene's range, of first genomes that lie near the start."""


@final
class Nsga2(Algorithm):
    """NSGA-II with simulated binary crossover and polynomial mutation (Deb et al. 2002).

    The first generation holds the start, a quarter near it and uniform genomes for the rest. Answers with the
    non-dominated members of the present population: the knee first, then the loneliest.

    Args:
        start: a genome of the first generation.
        objectives: number of costs of each genome.
        population: genomes per generation.
        seed: seed of the run.
    """

    def __init__(self, *, start: Genome, objectives: int, population: int, seed: int) -> None:
        self.population = population
        self._seed = seed
        self._generation = 0
        # Operators are made anew: pymoo's defaults are objects that all algorithms of a process would share.
        self._nsga2 = NSGA2(
            pop_size=population,
            sampling=_first_generation(start, population, seed),
            selection=TournamentSelection(func_comp=binary_tournament),
            crossover=SBX(eta=15, prob=0.9),
            mutation=PM(eta=20),
            survival=RankAndCrowdingSurvival(),
            eliminate_duplicates=DefaultDuplicateElimination(),
            output=None,
            seed=derive_seed(seed, "nsga2"),
        )
        self._nsga2.setup(Problem(n_var=len(start), n_obj=objectives, xl=0.0, xu=1.0))
        self._nsga2.termination = NoTermination()

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        if self._generation == 0:
            return ()
        genomes, costs = self._nsga2.pop.get("X"), self._nsga2.pop.get("F")
        return tuple(dict.fromkeys(Genome(tuple(genomes[i])) for i in shortlist(costs)))

    def _propose(self) -> tuple[Genome, ...]:
        offspring = self._nsga2.ask()
        rows = [] if offspring is None else list(np.clip(offspring.get("X"), 0.0, 1.0))
        # Duplicates are dropped by the library, so a generation may come short: newcomers fill it up.
        missing = (self.population - len(rows), self._nsga2.problem.n_var)
        rows += list(stream(self._seed, "nsga2 newcomers", self._generation).random(missing))
        return tuple(Genome(tuple(row)) for row in rows)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        genomes = np.array([evaluation.genome.values for evaluation in evaluations])
        costs = np.array([evaluation.costs for evaluation in evaluations])
        self._nsga2.termination.force_termination = False  # set by the library when all offspring were duplicates
        self._nsga2.tell(infills=Population.new("X", genomes, "F", costs))
        self._generation += 1


def _first_generation(start: Genome, population: int, seed: int) -> NDArray[np.float64]:
    random = stream(seed, "nsga2 first generation")
    rows = random.random((population, len(start)))
    near = 1 + population // 4
    rows[:near] = np.clip(start.values + _NEAR * random.standard_normal((near, len(start))), 0.0, 1.0)
    rows[0] = start.values
    return rows
