"""Genetic algorithms on all objectives, NSGA-II, NSGA-III and SMS-EMOA: the adapter around `pymoo`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2, RankAndCrowdingSurvival, binary_tournament
from pymoo.algorithms.moo.nsga3 import NSGA3, ReferenceDirectionSurvival, comp_by_cv_then_random
from pymoo.algorithms.moo.sms import SMSEMOA, LeastHypervolumeContributionSurvival, cv_and_dom_tournament
from pymoo.core.duplicate import DefaultDuplicateElimination
from pymoo.core.population import Population
from pymoo.core.problem import Problem as BoxedProblem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.util.ref_dirs import get_reference_directions

from evomerge.pareto import shortlist
from evomerge.population.base import Algorithm, Evaluation, Handover, Problem
from evomerge.rng import derive_seed, stream
from evomerge.spaces import Genome

if TYPE_CHECKING:
    from evomerge.config import Nsga2Config, Nsga3Config, SmsEmoaConfig

__all__ = ["Nsga2", "Nsga3", "SmsEmoa", "build"]

_NEAR = 0.1
"""Standard deviation, as a share of each gene's range, of first genomes that lie near the start."""


class Genetic(Algorithm):
    """Simulated binary crossover and polynomial mutation; who is selected and who survives is left open.

    The first generation holds the start, a quarter near it and uniform genomes for the rest. Answers with the
    non-dominated members of the present population: the knee first, then the loneliest.

    Args:
        start: a genome of the first generation.
        objectives: number of costs of each genome.
        population: genomes per generation.
        seed: seed of the run.
        first: genomes that the first generation holds instead, as many as fit.
    """

    _name: ClassVar[str]
    """Names its random streams."""

    def __init__(
        self, *, start: Genome, objectives: int, population: int, seed: int, first: Sequence[Genome] = ()
    ) -> None:
        self.population = population
        self._seed = seed
        self._generation = 0
        self._optimizer = self._optimizer_for(
            objectives,
            pop_size=population,
            sampling=self._first_generation(start, first),
            mutation=PM(eta=20),
            eliminate_duplicates=DefaultDuplicateElimination(),
            output=None,
            seed=derive_seed(seed, self._name),
        )
        self._optimizer.setup(BoxedProblem(n_var=len(start), n_obj=objectives, xl=0.0, xu=1.0))
        self._optimizer.termination = NoTermination()

    @abstractmethod
    def _optimizer_for(self, objectives: int, **common: Any) -> GeneticAlgorithm:
        """The library's algorithm. Operators are made anew: its defaults are shared by all algorithms of a process."""

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        if self._generation == 0:
            return ()
        genomes, costs = self._optimizer.pop.get("X"), self._optimizer.pop.get("F")
        return tuple(dict.fromkeys(Genome(tuple(genomes[i])) for i in shortlist(costs)))

    def handover(self) -> Handover:
        """See `Algorithm.handover`: the population, its front first."""
        everyone = [] if self._generation == 0 else [Genome(tuple(row)) for row in self._optimizer.pop.get("X")]
        return Handover(genomes=tuple(dict.fromkeys([*self.answer(), *everyone])))

    def _propose(self) -> tuple[Genome, ...]:
        offspring = self._optimizer.ask()
        rows = [] if offspring is None else list(np.clip(offspring.get("X"), 0.0, 1.0))
        # Duplicates are dropped by the library, so a generation may come short: newcomers fill it up.
        missing = (self.population - len(rows), self._optimizer.problem.n_var)
        rows += list(stream(self._seed, f"{self._name} newcomers", self._generation).random(missing))
        return tuple(Genome(tuple(row)) for row in rows)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        genomes = np.array([evaluation.genome.values for evaluation in evaluations])
        costs = np.array([evaluation.costs for evaluation in evaluations])
        self._optimizer.termination.force_termination = False  # set by the library when all offspring were duplicates
        with np.errstate(all="ignore"):  # distances of huge costs overflow; such candidates are dominated anyway
            self._optimizer.tell(infills=Population.new("X", genomes, "F", costs))
        self._generation += 1

    def _first_generation(self, start: Genome, first: Sequence[Genome]) -> NDArray[np.float64]:
        random = stream(self._seed, f"{self._name} first generation")
        rows = random.random((self.population, len(start)))
        near = 1 + self.population // 4
        rows[:near] = np.clip(start.values + _NEAR * random.standard_normal((near, len(start))), 0.0, 1.0)
        rows[0] = start.values
        for row, genome in zip(rows, first, strict=False):
            row[:] = genome.values
        return rows


@final
class Nsga2(Genetic):
    """NSGA-II (Deb et al. 2002): survivors by rank, then by crowding distance. Arguments as in `Genetic`."""

    _name = "nsga2"

    def _optimizer_for(self, objectives: int, **common: Any) -> GeneticAlgorithm:
        return NSGA2(
            **common,
            selection=TournamentSelection(func_comp=binary_tournament),
            crossover=SBX(eta=15, prob=0.9),
            survival=RankAndCrowdingSurvival(),
        )


@final
class Nsga3(Genetic):
    """NSGA-III (Deb and Jain 2014): survivors by rank, then near directions spread evenly over the objectives.

    There are as many directions as fit into the population. Arguments as in `Genetic`; at least two objectives.
    """

    _name = "nsga3"

    def _optimizer_for(self, objectives: int, **common: Any) -> GeneticAlgorithm:
        directions = _directions(objectives, self.population)
        return NSGA3(
            directions,
            **common,
            selection=TournamentSelection(func_comp=comp_by_cv_then_random),
            crossover=SBX(eta=30, prob=1.0),
            survival=ReferenceDirectionSurvival(directions),
        )


@final
class SmsEmoa(Genetic):
    """SMS-EMOA (Beume et al. 2007), by generations: of the last front that fits in part, who adds least volume goes.

    Arguments as in `Genetic`; the time for a generation grows quickly with the number of objectives.
    """

    _name = "sms_emoa"

    def _optimizer_for(self, objectives: int, **common: Any) -> GeneticAlgorithm:
        return SMSEMOA(
            **common,
            selection=TournamentSelection(func_comp=cv_and_dom_tournament),
            crossover=SBX(eta=15, prob=0.9),
            survival=LeastHypervolumeContributionSurvival(),
        )


def _directions(objectives: int, most: int) -> NDArray[np.float64]:
    """`(n, objectives)`, the finest simplex lattice (Das and Dennis 1998) of at most so many directions.

    With fewer places than objectives, a single direction to the middle.
    """
    steps = 0
    while comb(steps + objectives, steps + 1) <= most:
        steps += 1
    if steps == 0:
        return np.full((1, objectives), 1.0 / objectives)
    lattice: NDArray[np.float64] = get_reference_directions("das-dennis", objectives, n_partitions=steps)
    return lattice


def build(config: Nsga2Config | Nsga3Config | SmsEmoaConfig, problem: Problem) -> Genetic:
    """The one of the configuration's kind."""
    kinds: dict[str, type[Genetic]] = {"nsga2": Nsga2, "nsga3": Nsga3, "sms_emoa": SmsEmoa}
    return kinds[config.kind](
        start=problem.space.start,
        objectives=problem.objectives,
        population=config.population,
        seed=problem.seed,
        first=_first(config.population, problem),
    )


def _first(population: int, problem: Problem) -> Sequence[Genome]:
    """What the stage before left; else known paths, of which the start is one, on half of the places at most.

    Other spaces know each expert alone. Those are anchors already, and as first parents they cost hypervolume.
    """
    if problem.handover:
        return problem.handover.genomes
    return problem.known[: population // 2] if problem.space.start in problem.known else ()
