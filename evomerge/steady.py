"""The search without generations: a fixed number of candidates in work, and one more for each that is told.

What is asked follows from the order in which candidates are settled, and from nothing else. That order is on record, in
the same transactions as what it is an order of; a run that goes on tells again in that order what is settled, and hands
out again what is not.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import final

from evomerge.evaluator import Unsettled
from evomerge.loop import Loop, Progress
from evomerge.opening import anchors
from evomerge.outcome import Job
from evomerge.runs import Candidate
from evomerge.spaces import Genome
from evomerge.stopping import Stop

__all__ = ["Steady"]

_ROUND = range(1)


@final
@dataclass(kw_only=True, eq=False)
class Steady(Loop):
    """Candidates are told one by one, as they are settled, but never before the anchors beside them are.

    Candidates in the order of their numbers make blocks of `population`, each of which shares a draw of items.

    Attributes:
        in_flight: candidates in work.
    """

    in_flight: int
    _asked: int = field(default=0, init=False)
    _closed: bool = field(default=False, init=False)
    _anchors: dict[str, Candidate] = field(default_factory=dict, init=False)
    _open: dict[int, tuple[Candidate, Genome]] = field(default_factory=dict, init=False)  # asked and not told, by id
    _settled: deque[int] = field(default_factory=deque, init=False)  # in the order in which they will be told
    _beside: dict[int, list[Job]] = field(default_factory=lambda: defaultdict(list), init=False)  # by block
    _begun: set[int] = field(default_factory=set, init=False)  # blocks whose anchors were told
    _compared: int = field(default=0, init=False)  # block whose anchors the assessment compares with now

    @property
    def generations(self) -> int:
        """See `Loop.generations`."""
        return self.manager.generation // self._block

    @property
    def _block(self) -> int:
        """Candidates that share a draw of items."""
        return self.experiment.algorithm.population_at(0)

    def run(self, stop: Stop) -> Iterator[Progress]:
        """See `Loop.run`."""
        recorded = self.store.order("search")
        self._settled = deque(recorded)
        self._anchors = {candidate.label: candidate for candidate in self.register.anchors(anchors(self.lineup))}
        for _ in range(self.in_flight):
            self._ask()
        known = set(recorded)
        while self._open:
            for candidate in self._tell():
                self._ask()
                if candidate.id not in known:
                    yield self._progress()
            if self._open:
                self._take_in(self.evaluator.arrivals(stop))
        self._note_end(self.spent + self._next_items())

    def _ask(self) -> None:
        """One more candidate; none ever again once the budget does not hold it, or there is nothing left to ask."""
        self._closed = self._closed or not self._affordable()
        genome = None if self._closed else self.manager.ask_one()
        self._closed = genome is None
        if genome is None:
            return
        block, slot = divmod(self._asked, self._block)
        self.spent += self._next_items()
        (candidate,) = self.register.asked(block, [genome], self.manager.lineage, slot)
        self._asked += 1
        self._open[candidate.id] = candidate, genome
        if slot == 0:
            self._beside[block] = self._jobs_beside(block)
            self.evaluator.take(self._beside[block])
        items = self.assessment.alone(candidate.id, genome.values, block)
        job = Job(candidate=candidate.id, phase="search", recipe=candidate.recipe, items=items, screened=True)
        self._take_in(self.evaluator.take([job]))

    def _jobs_beside(self, block: int) -> list[Job]:
        """What anchors answer beside a block: all of them beside the first, those to compare with beside others."""
        numbers = {label: candidate.id for label, candidate in self._anchors.items()}
        recipes = {candidate.id: candidate.recipe for candidate in self._anchors.values()}
        questions = self.assessment.beside(block, numbers)
        return [
            Job(candidate=i, phase="search", recipe=recipes[i], items=items, round=block)
            for i, items in questions.items()
        ]

    def _take_in(self, jobs: Iterable[Job]) -> None:
        """Candidates that were settled now, in this order."""
        self._settled.extend(job.candidate for job in jobs if job.candidate in self._open)

    def _tell(self) -> Iterator[Candidate]:
        """Tell what is settled, one after another, as far as the anchors beside it are settled too."""
        while self._settled:
            if self._settled[0] not in self._open:  # an anchor, or a candidate that a smaller budget no longer holds
                self._settled.popleft()
                continue
            candidate, genome = self._open[self._settled[0]]
            blocks = sorted({0, candidate.generation})
            if not all(self.evaluator.is_settled(job) for block in blocks for job in self._beside[block]):
                return
            for block in blocks:
                self._begin(block)
            self._tell_one(candidate, genome)
            del self._open[self._settled.popleft()]
            yield candidate

    def _begin(self, block: int) -> None:
        """The anchors beside a block are settled."""
        if block in self._begun:
            return
        self._begun.add(block)
        self._require(self._anchors)
        self.tokens += sum(self.evaluator.tokens(job.candidate, "search", job.round) for job in self._beside[block])
        if block == 0:
            answers = {anchor.id: self._answers(anchor, _ROUND) for anchor in self._anchors.values()}
            if all(answer is None for answer in answers.values()):
                self._nothing_works()
            found = self.assessment.told(list(answers), 0, answers)
            self.manager.anchors([found[i].scores if i in found else None for i in answers])

    def _nothing_works(self) -> None:
        """Nobody can be told before an anchor was scored: all that is asked later would rest on nothing."""
        if not self.live:
            raise Unsettled
        self.evaluator.give_up()

    def _tell_one(self, candidate: Candidate, genome: Genome) -> None:
        block = candidate.generation
        answers = {candidate.id: self._answers(candidate, _ROUND)}
        if block != self._compared:
            beside = {job.candidate for job in self._beside[block]}
            anchors = [anchor for anchor in self._anchors.values() if anchor.id in beside]
            answers |= {anchor.id: self._answers(anchor, range(block, block + 1)) for anchor in anchors}
            self._compared = block
        found = self.assessment.told([candidate.id], block, answers).get(candidate.id)
        self.manager.tell_one(
            genome,
            None if found is None else found.scores,
            0.0 if found is None else found.violation,
            self._item_scores(candidate, _ROUND),
        )
        taken = self.evaluator.tokens(candidate.id, "search", 0)
        self.tokens, self.dearest = self.tokens + taken, max(self.dearest, taken)
        if self.live and self.manager.generation % self._block == 0:
            self.account()

    def _affordable(self) -> bool:
        """Whether the budget holds one more candidate, and those in work at their most costly."""
        budget = self.experiment.budget
        tokens = self.tokens + self.dearest * (len(self._open) + 1)
        return (
            self.experiment.anchors + self._asked < budget.evaluations
            and (budget.items is None or self.spent + self._next_items() <= budget.items)
            and (budget.tokens is None or tokens <= budget.tokens)
        )

    def _next_items(self) -> int:
        """Items that one more candidate takes, and the anchors with it."""
        block, slot = divmod(self._asked, self._block)
        beside = 0 if slot else self.assessment.most_beside(block, self.experiment.anchors)
        return beside + self.assessment.most_of(1)

    def _progress(self) -> Progress:
        told = self.manager.generation
        return Progress(
            phase="search",
            generation=(told - 1) // self._block,
            done=self.experiment.anchors + told,
            planned=self.experiment.budget.evaluations,
            failures=self.evaluator.failures,
            in_flight=len(self._open),
        )
