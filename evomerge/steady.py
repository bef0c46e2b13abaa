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
    """Candidates and anchors are told one by one, as they are settled, but never before the anchors to compare with.

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
    _unheard: dict[int, Candidate] = field(default_factory=dict, init=False)  # anchors that were not told of yet, by id
    _begun: set[int] = field(default_factory=set, init=False)  # blocks of which a candidate was told
    _learned: int = field(default=-1, init=False)  # block whose anchors the assessment compares with now

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
        self._unheard = {candidate.id: candidate for candidate in self._anchors.values()}
        with self._together():
            for _ in range(self.in_flight):
                self._ask()
        known = set(recorded)
        while self._waits:
            self._refuse_lost_anchors()
            with self._together():
                steps = [self._answered(candidate) for candidate in self._tell()]
                self.evaluator.begin(stop)
            yield from (step for candidate, step in steps if candidate not in known)
            if self._waits:
                self._take_in(self.evaluator.arrivals(stop))
        self._note_end(self.spent + self._next_items())

    @property
    def _waits(self) -> bool:
        """Whether a candidate, or an anchor beside it, is in work."""
        return bool(self._open or (self._asked and self._unheard))

    def _answered(self, candidate: Candidate) -> tuple[int, Progress]:
        """Ask for one more after one that was told; its number, and how far the run is."""
        if candidate.kind == "search":
            self._ask()
        return candidate.id, self._progress()

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
        """Anchors and candidates that were settled now, in this order."""
        self._settled.extend(job.candidate for job in jobs if job.round == 0)

    def _tell(self) -> Iterator[Candidate]:
        """Tell what is settled, one after another, as far as the anchors to compare with are settled too."""
        while self._settled and self.evaluator.scored:
            number = self._settled[0]
            if number in self._open:
                candidate, genome = self._open[number]
            elif number in self._unheard:
                candidate, genome = self._unheard[number], None
            else:  # a candidate that a smaller budget no longer holds
                self._settled.popleft()
                continue
            if not all(map(self.evaluator.is_settled, self._compared(max(candidate.generation, 0)))):
                return
            self._tell_one(candidate, genome)
            self._settled.popleft()
            yield candidate

    def _tell_one(self, candidate: Candidate, genome: Genome | None) -> None:
        """Tell the algorithm of a candidate, or, without a genome, of an anchor."""
        block = max(candidate.generation, 0)
        answers = {candidate.id: self._answers(candidate, _ROUND)}
        by_id = {anchor.id: anchor for anchor in self._anchors.values()}
        for job in self._compared(block) if block != self._learned else ():
            answers[job.candidate] = self._answers(by_id[job.candidate], range(job.round, job.round + 1))
        found = self.assessment.told([candidate.id], block, answers).get(candidate.id)
        scores = None if found is None else found.scores
        taken = sum(self.evaluator.tokens(candidate.id, "search", 0).values())
        self.tokens += taken
        if block != self._learned:
            self._learned = block
            self.tokens += self._tokens_beside(block)
        if genome is None:
            self.manager.anchors([scores])
            del self._unheard[candidate.id]
            return
        self.dearest = max(self.dearest, taken)
        violation = 0.0 if found is None else found.violation
        self.manager.tell_one(genome, scores, violation, self._item_scores(candidate, _ROUND))
        del self._open[candidate.id]
        if self.live and self.manager.generation % self._block == 0:
            self.account()

    def _compared(self, block: int) -> list[Job]:
        """What the anchors that candidates of a block are compared with answer beside it."""
        wanted = {constraint.relative_to for constraint in self.experiment.fitness.constraints}
        numbers = {anchor.id for label, anchor in self._anchors.items() if label in wanted}
        jobs = self._beside[block] or self._beside[0]
        return [job for job in jobs if job.candidate in numbers]

    def _tokens_beside(self, block: int) -> int:
        """Tokens that anchors took beside a block, the first time that it is asked; those of round 0 are told of."""
        jobs = [] if block in self._begun else [job for job in self._beside[block] if job.round]
        self._begun.add(block)
        return sum(sum(self.evaluator.tokens(job.candidate, "search", job.round).values()) for job in jobs)

    def _refuse_lost_anchors(self) -> None:
        """End a run without an anchor that is compared with, or without anything scored: no tell could be trusted."""
        self._require(self._anchors)
        if not self.evaluator.scored and self.evaluator.idle:
            if not self.live:
                raise Unsettled
            self.evaluator.give_up()

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
            generation=max(told - 1, 0) // self._block,
            done=len(self._anchors) - len(self._unheard) + told,
            planned=self.experiment.budget.evaluations,
            failures=self.evaluator.failures,
            in_flight=len(self._open),
        )
