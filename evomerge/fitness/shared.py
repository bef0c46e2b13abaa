"""The plain way to score: every candidate of a generation is asked the same items, and scores their mean.

Knows nothing of engines, stores or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from evomerge.config import ConstraintConfig, ObjectiveConfig
from evomerge.fitness.assessment import Answers, Check, Questions, Told
from evomerge.fitness.constraints import violation
from evomerge.fitness.estimate import scores
from evomerge.fitness.items import ItemSplit
from evomerge.outcome import Answer, Responses

__all__ = ["SharedItems"]


@final
class SharedItems:
    """Asks the items of the generation's draw; a `Reader` of `assessment`.

    Args:
        split: what may be asked.
        objectives: what is optimized.
        constraints: what must be kept.
    """

    def __init__(
        self, split: ItemSplit, objectives: Sequence[ObjectiveConfig], constraints: Sequence[ConstraintConfig]
    ) -> None:
        self._split, self._objectives, self._constraints = split, objectives, constraints
        self._answers: dict[int, tuple[Answer, ...]] = {}
        self._asked: dict[int, Mapping[str, int]] = {}
        self._compared: dict[str, int] = {}

    @property
    def tasks(self) -> Sequence[str]:
        """Those of the split."""
        return [*self._split.pool]

    def size(self, total: int | None = None) -> int:
        """As many of every task."""
        return (self._split.size if total is None else total) * len(self._split.pool)

    def start(self, references: Mapping[str, int]) -> Questions:
        """The first generation's items."""
        labels = {constraint.relative_to for constraint in self._constraints}
        self._compared = {label: number for label, number in references.items() if label in labels}
        return dict.fromkeys(references.values(), self._split.draw(0))

    def again(self, generation: int) -> Questions:
        """The generation's items, for the anchors that constraints are relative to."""
        fresh = self._split.policy == "fresh"
        return dict.fromkeys(self._compared.values(), self._split.draw(generation)) if fresh else {}

    def ask(self, candidates: Mapping[int, tuple[float, ...]], generation: int, totals: Mapping[str, int]) -> Questions:
        """The next items of the generation's draw."""
        found = {}
        for number in candidates:
            found[number] = self._split.draw(generation, self._asked.get(number), totals)
            self._asked[number] = totals
        return found

    def rest(self, candidates: Sequence[int]) -> Questions:
        """Nothing: the mean of a few items is not improved by knowing a few candidates better."""
        return {}

    def learn(self, answers: Answers) -> None:
        """Keep what was answered."""
        for number, found in answers.items():
            if found is None:
                self._answers.pop(number, None)
            else:
                self._answers[number] = found

    def told(self, candidates: Sequence[int], generation: int) -> dict[int, Told]:
        """Means of the answers."""
        return {number: self._told(self._answers[number]) for number in candidates if number in self._answers}

    def checks(self, generation: int) -> dict[str, Check]:
        """Nothing: a mean rests on no model."""
        return {}

    def _told(self, answers: tuple[Answer, ...]) -> Told:
        found = scores(answers, self._objectives)
        known = {label: self._answers[number] for label, number in self._compared.items() if number in self._answers}
        return Told(
            scores=tuple(estimate.mean for estimate in found),
            sds=tuple(estimate.se for estimate in found),
            items=sum({r.task: len(r.items) for r in answers if isinstance(r, Responses)}.values()),
            violation=violation(answers, known, self._constraints),
        )
