"""Gives every job a result or a final failure, whatever happens to the workers on the way.

Execution is at least once, accounting exactly once: attempts may be lost and repeated, but a round of a
(candidate, phase) is settled once. Knows nothing of algorithms, genomes or generations.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from evomerge.blame import Blame
from evomerge.errors import RunError, StoreError
from evomerge.outcome import Failed, Job, Outcome, Phase, Responses, Stage, together
from evomerge.runs import RunStore, check
from evomerge.stopping import Stop
from evomerge.workers import Executor

__all__ = ["Drained", "Evaluator", "Unsettled"]

GIVE_UP_AFTER = 8
"""Failures without a single success after which the run stops: the fault is not the candidates'."""

_Key = tuple[int, Phase]
_Place = tuple[Phase, str, str]


class Drained(Exception):  # noqa: N818 - a way out of nested loops, not an error
    """A stop was asked for, and nothing is in flight any more."""


class Unsettled(Exception):  # noqa: N818 - likewise
    """Something would have to be evaluated, and there is no executor."""


class Evaluator:
    """Settles jobs through an executor, and takes from the store what is settled already.

    Args:
        store: the open run.
        executor: started; None settles nothing, see `Unsettled`.

    Attributes:
        waited: seconds spent waiting for workers since it was last set to 0.
    """

    def __init__(self, store: RunStore, executor: Executor | None) -> None:
        self._store, self._executor = store, executor
        attempts = store.attempts()
        self._attempts: Counter[_Key] = Counter((a.candidate, a.phase) for a in attempts)
        self._blame = Blame()
        for attempt in attempts:  # by number
            self._blame.note((attempt.candidate, attempt.phase), attempt.status, attempt.stage)
        self._failures: dict[_Key, Stage] = {(f.candidate, f.phase): f.stage for f in store.failures()}
        recipes = store.digests()
        self._rounds: defaultdict[_Key, dict[int, tuple[Responses, ...]]] = defaultdict(dict)
        self._scored: dict[_Place, tuple[int, int]] = {}
        self._queue: deque[Job] = deque()
        self._flying: dict[tuple[int, Phase, int], Job] = {}
        self._begun: list[Job] = []  # those that are still to be handed out
        self._twins: dict[_Place, list[Job]] = {}
        self._tokens: dict[tuple[int, Phase, int], Mapping[str, int]] = {}
        for result in store.results():
            self._rounds[result.candidate, result.phase][result.round] = result.responses
            self._tokens[result.candidate, result.phase, result.round] = result.tokens
            place = (result.phase, result.items_digest, recipes[result.candidate])
            self._scored.setdefault(place, (result.candidate, result.round))
        self.waited = 0.0

    @property
    def failures(self) -> int:
        """How many (candidate, phase) were given up."""
        return len(self._failures)

    @property
    def scored(self) -> bool:
        """Whether anybody was ever scored."""
        return bool(self._rounds)

    @property
    def idle(self) -> bool:
        """Whether all jobs that were taken are settled."""
        return not self._queue and not self._flying

    def responses(self, candidate: int, phase: Phase, rounds: range) -> tuple[Responses, ...] | None:
        """What a candidate answered in some rounds, whatever is recorded of others; None if it failed in one."""
        found = self._rounds.get((candidate, phase), {})
        return together(found[number] for number in rounds) if all(number in found for number in rounds) else None

    def tokens(self, candidate: int, phase: Phase, number: int) -> Mapping[str, int]:
        """What a round took by task, or would have taken where an equal one's result was shared; {} if it failed."""
        return self._tokens.get((candidate, phase, number), {})

    def refuse_failure(self, candidate: int, phase: Phase, needed_by: str) -> None:
        """End the run if a candidate failed that it cannot do without; the next start tries that one again.

        Raises:
            RunError: it failed.
            Unsettled: it failed, and there is no executor that could try again.
        """
        if (candidate, phase) not in self._failures:
            return
        if self._executor is None:
            raise Unsettled
        failure = next(f for f in self._store.failures() if (f.candidate, f.phase) == (candidate, phase))
        self._store.forgive_failures(candidate)
        raise RunError(
            f"{needed_by} failed at stage {failure.stage}: {failure.reason}. See the logs in "
            f"{self._store.folder / 'logs'}; once the cause is repaired, the same command tries again."
        )

    def settle(self, jobs: Sequence[Job], stop: Stop) -> Iterator[int]:
        """Settle some jobs, at most one for each candidate and all of one phase.

        Yields:
            After each job, how many of them are settled.

        Raises:
            Drained: a stop was asked for before all were settled.
            Unsettled: there is no executor.
            RunError: nothing can be evaluated.
        """
        settled = sum(map(self.is_settled, jobs))
        # the longest first, so that none is left over at the end
        fresh = self.take(sorted(jobs, key=lambda job: -job.work))
        while True:
            for _ in fresh:
                settled += 1
                yield settled
            if settled == len(jobs):
                return
            fresh = self.arrivals(stop)

    def take(self, jobs: Sequence[Job]) -> list[Job]:
        """Take jobs to settle, at any time; see `arrivals`. Those that are settled already are passed over.

        Equal recipe and equal items mean one evaluation: the others share its result, or its failure if they were
        waiting for it.

        Returns:
            Those that share a result which is recorded already, and so are settled now.
        """
        shared = []
        for job in jobs:
            place = _place(job)
            if self.is_settled(job):
                continue
            if place in self._scored and self._executor is not None:
                self._copy(job, self._scored[place])
                shared.append(job)
            elif place in self._twins:
                self._twins[place].append(job)
            else:
                self._twins[place] = []
                self._queue.append(job)
        return shared

    def arrivals(self, stop: Stop) -> list[Job]:
        """Hand out the jobs that there is room for, and wait for outcomes.

        Returns:
            Jobs that are settled now, in the order in which they are recorded; may be empty.

        Raises:
            Drained: a stop was asked for, and nothing is in flight any more.
            Unsettled: there is no executor.
            RunError: nothing can be evaluated.
        """
        self._dispatch(stop)
        ended = self._ended()
        if not ended:
            return []
        settled: list[Job] = []
        with self._store.together():  # one flush to disk for all
            for outcome, job in ended:
                if self._record(outcome, job):
                    settled += [job, *self._shared(job)]
                else:
                    self._queue.appendleft(job)
        if not self._rounds and len(self._failures) >= GIVE_UP_AFTER and isinstance(ended[-1][0], Failed):
            self.give_up()
        return settled

    def begin(self, stop: Stop) -> None:
        """Record the attempts that there is room for. `arrivals` hands them out, and does this itself if need be."""
        if self._executor is None or stop.requested or not self._queue:
            return
        free = max(0, self._executor.capacity - len(self._flying))
        with self._store.together():
            self._begun += [self._started(self._queue.popleft()) for _ in range(min(free, len(self._queue)))]
        self._flying |= {(job.candidate, job.phase, job.round): job for job in self._begun}

    def is_settled(self, job: Job) -> bool:
        """Whether a job's round has a result, or its candidate was given up in its phase."""
        key = (job.candidate, job.phase)
        return key in self._failures or job.round in self._rounds.get(key, {})

    def _dispatch(self, stop: Stop) -> None:
        if self._executor is None:
            raise Unsettled
        if stop.requested and not self._flying:
            raise Drained
        self.begin(stop)
        for job in self._begun:
            self._executor.submit(job)
        self._begun.clear()

    def _started(self, job: Job) -> Job:
        """The job as its next attempt, which is recorded before anything costly starts."""
        key = (job.candidate, job.phase)
        self._attempts[key] += 1
        job = replace(job, attempt=self._attempts[key], alone=self._blame.suspect(key))
        self._store.start_attempt(job)
        return job

    def _ended(self) -> list[tuple[Outcome, Job]]:
        """Outcomes that came in, each with its job, which flies no more; late and doubled replies are dropped."""
        began = time.perf_counter()
        outcomes = self._executor.wait(timeout=1.0) if self._executor else []
        self.waited += time.perf_counter() - began
        ended = []
        for outcome in outcomes:
            job = self._flying.pop((outcome.candidate, outcome.phase, outcome.round), None)
            if job is not None:
                ended.append((outcome, job))
        return ended

    def _record(self, outcome: Outcome, job: Job) -> bool:
        """Record an outcome; False when the job is to be tried again."""
        key = (job.candidate, job.phase)
        outcome = _answering(outcome, job)
        if not isinstance(outcome, Failed):
            self._store.record(outcome, job=job)
            self._blame.note(key, "scored", "")
            self._rounds[key][job.round] = outcome.responses
            self._tokens[job.candidate, job.phase, job.round] = outcome.tokens
            self._scored.setdefault(_place(job), (job.candidate, job.round))
            return True
        self._blame.note(key, "failed", outcome.stage)
        final = not outcome.retry or self._blame.guilty(key)
        self._store.record(outcome, job=job, final=final)
        if final:
            self._failures[key] = outcome.stage
        return final

    def give_up(self) -> NoReturn:
        """End a run in which nothing was ever scored; the next start tries everybody again.

        Raises:
            RunError: always.
        """
        first = self._store.failures()[0]
        self._store.forgive_failures()
        raise RunError(
            f"the first {len(self._failures)} candidates all failed, number {first.candidate} at stage {first.stage}: "
            f"{first.reason}. See the logs in {self._store.folder / 'logs'}; once the cause is repaired, the same "
            "command tries them again."
        )

    def _shared(self, job: Job) -> list[Job]:
        """Give those that waited for a job its result or its failure."""
        place = _place(job)
        twins = self._twins.pop(place)
        for twin in twins:
            if place in self._scored:
                self._copy(twin, self._scored[place])
            else:
                self._fail_like(twin, job.candidate)
        return twins

    def _copy(self, job: Job, source: tuple[int, int]) -> None:
        """Give a job the result of a candidate's round."""
        self._store.copy_result(job, source)
        self._rounds[job.candidate, job.phase][job.round] = self._rounds[source[0], job.phase][source[1]]
        self._tokens[job.candidate, job.phase, job.round] = self.tokens(source[0], job.phase, source[1])

    def _fail_like(self, job: Job, twin: int) -> None:
        stage = self._failures[twin, job.phase]
        reason = f"the same recipe failed as candidate {twin}"
        failed = Failed(candidate=job.candidate, phase=job.phase, round=job.round, stage=stage, reason=reason)
        self._store.record(failed, job=self._started(job), final=True)
        self._failures[job.candidate, job.phase] = stage


def _place(job: Job) -> _Place:
    """What equal jobs have in common."""
    return job.phase, job.items.digest, job.recipe.digest


def _answering(outcome: Outcome, job: Job) -> Outcome:
    """The outcome, or a failure if it does not answer its job: a worker that breaks its contract must not end a run."""
    try:
        check(outcome, job)
    except StoreError as error:
        return Failed(candidate=job.candidate, phase=job.phase, round=job.round, stage="evaluate", reason=str(error))
    return outcome
