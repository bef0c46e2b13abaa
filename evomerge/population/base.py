"""`Algorithm`: the ask/tell contract that every optimizer keeps, and `Evaluation`, what it is told.

Genomes out, costs in. Knows nothing of recipes, models, benchmarks or failures.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, final

from evomerge.rng import stream
from evomerge.spaces import Genome, SearchSpace

if TYPE_CHECKING:
    from evomerge.config import AlgorithmConfig
    from evomerge.population.latent import Distribution

__all__ = [
    "FEWEST_EARLIER",
    "Algorithm",
    "Crossing",
    "Evaluation",
    "Handover",
    "Item",
    "Problem",
    "SteadyAlgorithm",
    "build_algorithm",
]

Item = tuple[int, int, int]
"""Objective, task within it, item: what a score on one item belongs to, whoever scored it."""

FEWEST_EARLIER = 10
"""Evaluations that a warm start needs: it begins where their best tenth lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an algorithm learns about one genome.

    Attributes:
        costs: one per objective, lower is better.
        items: score of each item that was asked, higher is better; not every genome need be asked the same. Empty for
            genomes that failed or break a constraint, and for algorithms that do not read items.

    Raises:
        ValueError: no costs, or a cost that is not finite.
    """

    genome: Genome
    costs: tuple[float, ...]
    items: Mapping[Item, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.costs or not all(math.isfinite(cost) for cost in self.costs):
            raise ValueError(f"an evaluation needs finite costs, one per objective; got {self.costs}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """How a genome came about: two parents, mixed with swapped shares left and right of a split.

    Attributes:
        split: how many places lie left of it.
        share: the second parent's on the left, from 0 to 1; on the right it is the first's.
    """

    first: Genome
    second: Genome
    split: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """What one algorithm leaves to the next.

    Attributes:
        genomes: what it would go on with, best first; may be empty.
        spreads: the distributions that it works with, if any: one, or one for each island.
    """

    genomes: tuple[Genome, ...]
    spreads: tuple[Distribution, ...] = ()


class Algorithm(ABC):
    """An optimizer over the unit box that works in generations.

    Example:
        ::

            while budget_left:
                genomes = algorithm.ask()
                algorithm.tell([Evaluation(genome=g, costs=(f(g),)) for g in genomes])
            algorithm.answer()

    Deterministic: equal seeds and equal tells give bit-identical asks, in any process. That is how a run resumes, by
    replay; no state is ever saved.

    Attributes:
        population: genomes of the next generation; 0 if there is nothing left to ask.
        reads_items: whether it asks for `Evaluation.items`.
    """

    reads_items: ClassVar[bool] = False
    population: int
    _asked: tuple[Genome, ...] | None = None

    @final
    def ask(self) -> tuple[Genome, ...]:
        """The next generation, exactly `population` genomes.

        Raises:
            RuntimeError: the last generation was not told yet.
        """
        if self._asked is not None:
            raise RuntimeError("ask() was called twice; tell() the costs of the last generation first")
        self._asked = self._propose()
        return self._asked

    @final
    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """The costs of the generation that was asked, in the order asked.

        Raises:
            RuntimeError: nothing was asked.
            ValueError: other genomes than those asked, another order, or another number.
        """
        if self._asked is None:
            raise RuntimeError("tell() was called without ask(); ask() for a generation first")
        if tuple(evaluation.genome for evaluation in evaluations) != self._asked:
            raise ValueError(
                f"tell() needs the {len(self._asked)} genomes that ask() gave, in the same order; "
                f"got {len(evaluations)}, or other ones"
            )
        self._learn(evaluations)
        self._asked = None

    @property
    def lineage(self) -> tuple[Crossing | None, ...]:
        """Where each genome that was asked last comes from; empty if this algorithm does not cross."""
        return ()

    @abstractmethod
    def answer(self) -> tuple[Genome, ...]:
        """What to confirm if the search ended now, best first; distinct, and empty when nothing was told."""

    def handover(self) -> Handover:
        """What another algorithm would need to go on from here."""
        return Handover(genomes=self.answer())

    def state(self) -> Mapping[str, float]:
        """What tells how the search is going, by name, after the last `tell`: for reports, which draw what they find.

        Names that begin with the same word are drawn together, such as the `sigma` of several distributions.
        """
        return {}

    @abstractmethod
    def _propose(self) -> tuple[Genome, ...]:
        """One generation."""

    @abstractmethod
    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in one generation, which is complete and in order; must not change its argument."""


class SteadyAlgorithm(Algorithm):
    """An optimizer that can do without generations: asked for one genome at any time, and told of one at a time.

    Example:
        ::

            flying = [algorithm.ask_one() for _ in range(in_flight)]
            while flying:
                genome = next_to_be_scored(flying)
                algorithm.tell_one(Evaluation(genome=genome, costs=(f(genome),)))
                flying.append(algorithm.ask_one())

    A search works by generations or one by one, never both. Genomes are numbered from 0: number n stands where slot
    `n % population` of generation `n // population` would. Equal seeds, equal tells and an equal order of asks and
    tells give bit-identical asks.
    """

    _number = 0
    _flying: tuple[Genome, ...] = ()

    @final
    def ask_one(self) -> Genome | None:
        """The next genome, whatever is not told yet; None if there is nothing left to ask."""
        genome = self._next(self._number)
        if genome is not None:
            self._number += 1
            self._flying += (genome,)
        return genome

    @final
    def tell_one(self, evaluation: Evaluation) -> None:
        """The costs of one genome that was asked, in any order.

        Raises:
            ValueError: it was not asked, or told already.
        """
        if evaluation.genome not in self._flying:
            raise ValueError("tell_one() needs a genome that ask_one() gave and that was not told yet; got another one")
        place = self._flying.index(evaluation.genome)
        self._flying = self._flying[:place] + self._flying[place + 1 :]
        self._learn_one(evaluation)

    @abstractmethod
    def _next(self, number: int) -> Genome | None:
        """The genome of a number; those in `_flying` were asked and not told yet."""

    @abstractmethod
    def _learn_one(self, evaluation: Evaluation) -> None:
        """Take in one genome; must not change its argument."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What an algorithm is built for.

    Attributes:
        space: gives the genes and the start.
        weights: one per objective, positive; their share in the mean that single-objective algorithms optimize.
        seed: seed of the run.
        earlier: what another run over the same genes found, for a warm start; empty for none.
        handover: what a stage over fewer genes left, in these genes; None for none.
    """

    space: SearchSpace
    weights: tuple[float, ...]
    seed: int
    earlier: Sequence[Evaluation] = ()
    handover: Handover | None = None

    @property
    def objectives(self) -> int:
        """Number of costs of each genome."""
        return len(self.weights)

    @property
    def known(self) -> tuple[Genome, ...]:
        """Genomes that the space knows, such as each expert alone, or a model's own layers; distinct, may be empty."""
        known: tuple[Genome, ...] = getattr(self.space, "known", ())
        return tuple(dict.fromkeys(known))  # narrow ranges may not tell experts apart

    @property
    def founders(self) -> tuple[Genome, ...]:
        """The known genomes; where there are fewer than two, random ones."""
        rows = stream(self.seed, "founders").random((4, len(self.space.genes))).tolist()
        return self.known if len(self.known) > 1 else tuple(Genome(tuple(row)) for row in rows)


def build_algorithm(config: AlgorithmConfig, problem: Problem) -> Algorithm:
    """The algorithm that a configuration describes; imports the library behind it only now.

    Raises:
        ValueError: an algorithm that cannot take these genes or objectives, or a warm start from fewer than
            `FEWEST_EARLIER` evaluations.
        TypeError: the builder made something else.
    """
    if misfit := config.misfit(problem.objectives, len(problem.space.genes)):
        raise ValueError(misfit)
    algorithm = config.built(problem)
    if not isinstance(algorithm, Algorithm):
        raise TypeError(f"expected an evomerge.population.Algorithm; got {type(algorithm).__name__}")
    return algorithm
