"""`PopulationManager`: scores in, genomes out; the one place where a score becomes a cost and a failure a number.

A candidate that breaks a constraint costs more in every objective than all that was scored so far, by more the more it
breaks, and less than one that failed: feasibility first (Deb 2000), for any algorithm that ranks.

Scores are higher-better, costs lower-better. Knows nothing of why a candidate failed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

from evomerge.population.base import Algorithm, Crossing, Evaluation, Item, SteadyAlgorithm
from evomerge.spaces import Genome

__all__ = ["PopulationManager"]

Scores = tuple[float, ...]

_MARGIN = 1.0
"""How much worse than the worst score seen a candidate that breaks a constraint counts at least, in units of each
objective, and one that failed twice as much: scores from 0 to 1 that come later are still better than both."""

_WORST_UNSEEN = 1e9
"""Cost of a failed candidate in each objective while nothing was ever scored."""


@final
class PopulationManager:
    """Drives an algorithm with the results of a run.

    Example:
        ::

            manager = PopulationManager(algorithm, objectives=2)
            manager.anchors([(0.4, 0.9), (0.8, 0.3)])
            genomes = manager.ask()
            manager.tell([(0.6, 0.7), None, ...])  # None: the candidate failed

    A failed candidate is told to the algorithm as worse, in every objective, than the worst candidate or anchor scored
    so far in the run, its own generation included: by 2.0, a finite number. While nothing was scored it costs 1e9. The
    answer never holds a genome that failed.

    Args:
        algorithm: what proposes the genomes.
        objectives: number of scores per candidate.
    """

    def __init__(self, algorithm: Algorithm, objectives: int) -> None:
        self._algorithm = algorithm
        self._objectives = objectives
        self._worst: Scores | None = None
        self._asked: tuple[Genome, ...] = ()
        self._failed: set[Genome] = set()
        self._generation = 0

    @property
    def population(self) -> int:
        """Genomes per generation."""
        return self._algorithm.population

    @property
    def generation(self) -> int:
        """How many generations were told; without generations, how many genomes."""
        return self._generation

    @property
    def reads_items(self) -> bool:
        """Whether the algorithm learns from single items."""
        return self._algorithm.reads_items

    @property
    def lineage(self) -> tuple[Crossing | None, ...]:
        """Where each genome that was asked last comes from; empty if the algorithm does not cross."""
        return self._algorithm.lineage

    def state(self) -> dict[str, float]:
        """What tells how the search is going, see `Algorithm.state`; without what is not finite."""
        return {name: value for name, value in self._algorithm.state().items() if math.isfinite(value)}

    def ask(self) -> tuple[Genome, ...]:
        """The next generation.

        Raises:
            RuntimeError: the last generation was not told yet.
        """
        self._asked = self._algorithm.ask()
        return self._asked

    def anchors(self, scores: Sequence[Scores | None]) -> None:
        """Scores of candidates that the algorithm did not propose; they only teach what a bad score is.

        Raises:
            ValueError: another number of objectives, or a score that is not finite.
        """
        self._observe(scores)

    def tell(
        self,
        scores: Sequence[Scores | None],
        violations: Sequence[float] | None = None,
        items: Sequence[Mapping[Item, float]] | None = None,
    ) -> None:
        """Scores of the generation that was asked, in the order asked; None for a candidate that failed.

        Args:
            scores: higher is better.
            violations: for each candidate how far it is from keeping the constraints, 0 if it keeps them; None if all
                do. A candidate that fails has any.
            items: for each candidate the score of each item that it was asked, higher is better; None where nobody
                reads them. What a candidate that failed or breaks a constraint answered is not passed on.

        Raises:
            RuntimeError: nothing was asked.
            ValueError: another number of candidates or objectives, or a score that is not finite.
        """
        if not self._asked:
            raise RuntimeError("tell() was called without ask(); ask() for a generation first")
        if len(scores) != len(self._asked):
            raise ValueError(f"expected the scores of {len(self._asked)} candidates, as asked; got {len(scores)}")
        broken = violations or [0.0] * len(scores)
        answered = items or [{}] * len(scores)
        self._observe(scores)
        self._algorithm.tell(
            [
                self._evaluation(genome, score, by, answers)
                for genome, score, by, answers in zip(self._asked, scores, broken, answered, strict=True)
            ]
        )
        self._failed |= {genome for genome, score in zip(self._asked, scores, strict=True) if score is None}
        self._asked = ()
        self._generation += 1

    def ask_one(self) -> Genome | None:
        """The next genome, without generations; None if there is nothing left to ask.

        Raises:
            TypeError: the algorithm needs generations.
        """
        return self._steady().ask_one()

    def tell_one(self, genome: Genome, score: Scores | None, violation: float, items: Mapping[Item, float]) -> None:
        """The score of one genome that was asked without generations; see `tell`.

        Raises:
            TypeError: the algorithm needs generations.
            ValueError: the genome was not asked, another number of objectives, or a score that is not finite.
        """
        self._observe([score])
        self._steady().tell_one(self._evaluation(genome, score, violation, items))
        if score is None:
            self._failed.add(genome)
        self._generation += 1

    def _steady(self) -> SteadyAlgorithm:
        if not isinstance(self._algorithm, SteadyAlgorithm):
            raise TypeError(f"{type(self._algorithm).__name__} needs generations; ask() and tell() instead")
        return self._algorithm

    def answer(self) -> tuple[Genome, ...]:
        """What to confirm if the search ended now, best first; without genomes that failed."""
        return tuple(genome for genome in self._algorithm.answer() if genome not in self._failed)

    def _observe(self, scores: Sequence[Scores | None]) -> None:
        scored = [score for score in scores if score is not None]
        if wrong := [s for s in scored if len(s) != self._objectives or not all(map(math.isfinite, s))]:
            raise ValueError(f"expected {self._objectives} finite scores, one per objective; got {wrong[0]}")
        seen = scored if self._worst is None else [self._worst, *scored]
        if seen:
            self._worst = tuple(min(column) for column in zip(*seen, strict=True))

    def _evaluation(
        self, genome: Genome, score: Scores | None, violation: float, items: Mapping[Item, float]
    ) -> Evaluation:
        kept = {} if score is None or violation else items
        return Evaluation(genome=genome, costs=self._costs(score, violation), items=kept)

    def _costs(self, score: Scores | None, violation: float) -> tuple[float, ...]:
        if score is not None and not violation:
            return tuple(-value for value in score)
        if self._worst is None:
            return (_WORST_UNSEEN,) * self._objectives
        beyond = _MARGIN * (2.0 if score is None else 1.0 + violation / (1.0 + violation))
        return tuple(beyond - value for value in self._worst)
