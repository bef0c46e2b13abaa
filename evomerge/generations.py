"""The search by generations: all of one are scored before the next is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import final

from evomerge.fitness import Told
from evomerge.loop import Loop, Progress
from evomerge.opening import anchors
from evomerge.outcome import ItemSet, Job
from evomerge.runs import Candidate
from evomerge.stopping import Stop

__all__ = ["Generations"]


@final
@dataclass(kw_only=True, eq=False)
class Generations(Loop):
    """Scores are told in slot order, so the order in which workers finish cannot change a run."""

    _asked: int = field(default=0, init=False)
    _rounds: Counter[int] = field(default_factory=Counter, init=False)

    @property
    def generations(self) -> int:
        """See `Loop.generations`."""
        return self.manager.generation

    def run(self, stop: Stop) -> Iterator[Progress]:
        """See `Loop.run`."""
        references = self.register.anchors(anchors(self.lineup))
        generation = 0
        candidates = self._ask(generation)
        while candidates:
            found = yield from self._assess(generation, references, candidates, stop)
            if generation == 0:
                self.manager.anchors([_scores(found, candidate) for candidate in references])
            self.manager.tell(
                [_scores(found, candidate) for candidate in candidates],
                [found[c.id].violation if c.id in found else 0.0 for c in candidates],
                [self._item_scores(c, range(self._rounds[c.id])) for c in candidates],
            )
            self._asked += len(candidates)
            with self._together():
                if self.live:
                    self._note(generation, found)
                    self.account()
                generation += 1
                candidates = self._ask(generation)
        self._note_end(self._items_after(generation))

    def _ask(self, generation: int) -> list[Candidate]:
        """The next generation; empty if there is none, or the budget does not hold it."""
        if not self._affordable(generation):
            return []
        return self.register.asked(generation, self.manager.ask(), self.manager.lineage)

    def _affordable(self, generation: int) -> bool:
        """Whether there is another generation, and the budget holds it at its most costly."""
        budget, population = self.experiment.budget, self.manager.population
        if not population or self.experiment.anchors + self._asked + population > budget.evaluations:
            return False
        return (budget.items is None or self._items_after(generation) <= budget.items) and (
            budget.tokens is None or self.tokens + self.dearest <= budget.tokens
        )

    def _items_after(self, generation: int) -> int:
        """Items that the run may have asked when another generation is scored, at most."""
        return self.spent + self.assessment.most_items(generation, self.experiment.anchors, self.manager.population)

    def _assess(
        self, generation: int, references: Sequence[Candidate], candidates: Sequence[Candidate], stop: Stop
    ) -> Generator[Progress, None, dict[int, Told]]:
        """Score a generation, round by round; what is recorded is not asked again."""
        known = {candidate.id: candidate for candidate in (*references, *candidates)}
        labels = {candidate.label: candidate for candidate in references}
        numbers = {label: candidate.id for label, candidate in labels.items()}
        dialogue = self.assessment.generation(generation, numbers, {c.id: c.genome or () for c in candidates})
        questions, settled, spent = next(dialogue, None), 0, 0
        while questions is not None:
            jobs = [self._job(known[i], items) for i, items in questions.items()]
            for done in self.evaluator.settle(jobs, stop):
                settled = min(max(settled, done), len(labels) * (generation == 0) + len(candidates))
                yield self._progress(generation, settled)
            self._require(labels)
            for i, items in questions.items():
                taken = self.evaluator.tokens(i, "search", self._rounds[i])
                self.assessment.took(items, taken)
                self.tokens += sum(taken.values())
                spent += 0 if i in numbers.values() else sum(taken.values())
            self.dearest = max(self.dearest, spent)
            self._rounds.update(questions.keys())
            self.spent += sum(map(len, questions.values()))
            try:
                questions = dialogue.send({i: self._answers(known[i], range(self._rounds[i])) for i in questions})
            except StopIteration as end:
                return dict(end.value)
        return {}

    def _job(self, candidate: Candidate, items: ItemSet) -> Job:
        number = self._rounds[candidate.id]
        screened = candidate.kind == "search" and number == 0
        return Job(
            candidate=candidate.id,
            phase="search",
            recipe=candidate.recipe,
            items=items,
            round=number,
            screened=screened,
        )

    def _note(self, generation: int, found: Mapping[int, Told]) -> None:
        """Keep what reports tell: the algorithm's state, and estimates that are more than the mean of the answers."""
        if state := self.manager.state():
            self.store.note("algorithm", generation, dict(state))
        if self.experiment.fitness.estimator.kind != "mean":
            self.store.set_estimates({number: asdict(told) for number, told in found.items()})
            checks = self.assessment.checks(generation)
            self.store.note("audit", generation, {metric: asdict(check) for metric, check in checks.items()})

    def _progress(self, generation: int, settled: int) -> Progress:
        before = 0 if generation == 0 else self.experiment.anchors + self._asked
        return Progress(
            phase="search",
            generation=generation,
            done=before + settled,
            planned=self.experiment.budget.evaluations,
            failures=self.evaluator.failures,
        )


def _scores(found: Mapping[int, Told], candidate: Candidate) -> tuple[float, ...] | None:
    return found[candidate.id].scores if candidate.id in found else None
