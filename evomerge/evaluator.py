"""Gives every job a result or a final failure, whatever happens to the workers on the way.

Execution is at least once, accounting exactly once: attempts may be lost and repeated, but a round of a
(candidate, phase) is settled once. Knows nothing of algorithms, genomes or generations.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

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
        self._rounds: dict[_Key, dict[int, tuple[Responses, ...]]] = {}
        self._scored: dict[tuple[Phase, str, str], tuple[int, int]] = {}
        self._tokens: dict[tuple[int, Phase, int], int] = {}
        for result in store.results():
            self._keep(result.candidate, result.phase, result.round, result.responses)
            self._tokens[result.candidate, result.phase, result.round] = result.tokens
            place = (result.phase, result.items_digest, recipes[result.candidate])
            self._scored.setdefault(place, (result.candidate, result.round))
        self.waited = 0.0

    @property
    def failures(self) -> int:
        """How many (candidate, phase) were given up."""
        return len(self._failures)

    def responses(self, candidate: int, phase: Phase, rounds: int) -> tuple[Responses, ...] | None:
        """What a candidate answered in its first rounds, whatever is recorded of later ones; None if it failed."""
        found = self._rounds.get((candidate, phase), {})
        return together(found[number] for number in range(rounds)) if len(found) >= rounds else None

    def tokens(self, candidate: int, phase: Phase, number: int) -> int:
        """What a round took, or would have taken where an equal one's result was shared; 0 if it failed."""
        return self._tokens.get((candidate, phase, number), 0)

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
        open_, twins = self._unsettled(jobs)
        if self._executor is None and (open_ or twins):
            raise Unsettled
        # the longest first, so that none is left over at the end
        queue = deque(sorted(open_, key=lambda job: -job.work))
        flying: dict[int, Job] = {}
        settled = len(jobs) - len(open_) - len(twins)
        while queue or flying:
            self._dispatch(queue, flying, stop)
            before, ended = settled, self._ended(flying)
            if ended:
                with self._store.together():  # one flush to disk for all
                    again = [job for outcome, job in ended if not self._record(outcome, job)]
                queue.extendleft(again)
                self._give_up_if_hopeless(ended)
                settled += len(ended) - len(again)
                yield from range(before + 1, settled + 1)
        for job, twin in twins:
            self._copy(job, twin)
            settled += 1
            yield settled

    def _unsettled(self, jobs: Sequence[Job]) -> tuple[list[Job], list[tuple[Job, int]]]:
        """Jobs to do, and twins: pairs of a job and the candidate whose result or failure it shares.

        Equal recipe and equal items mean one evaluation.
        """
        first = {
            (job.items.digest, job.recipe.digest): job.candidate
            for job in reversed(jobs)
            if (job.candidate, job.phase) in self._failures
        }
        open_, twins = [], []
        for job in jobs:
            if self._is_settled(job):
                continue
            place = (job.items.digest, job.recipe.digest)
            scored = self._scored.get((job.phase, *place))
            twin = first.get(place) if scored is None else scored[0]
            if twin is None:
                first[place] = job.candidate
                open_.append(job)
            else:
                twins.append((job, twin))
        return open_, twins

    def _is_settled(self, job: Job) -> bool:
        key = (job.candidate, job.phase)
        return key in self._failures or job.round in self._rounds.get(key, {})

    def _dispatch(self, queue: deque[Job], flying: dict[int, Job], stop: Stop) -> None:
        if stop.requested and not flying:
            raise Drained
        if self._executor is None or stop.requested or not queue:
            return
        free = max(0, self._executor.capacity - len(flying))
        with self._store.together():
            jobs = [self._started(queue.popleft()) for _ in range(min(free, len(queue)))]
        for job in jobs:
            flying[job.candidate] = job
            self._executor.submit(job)

    def _started(self, job: Job) -> Job:
        """The job as its next attempt, which is recorded before anything costly starts."""
        key = (job.candidate, job.phase)
        self._attempts[key] += 1
        job = replace(job, attempt=self._attempts[key], alone=self._blame.suspect(key))
        self._store.start_attempt(job)
        return job

    def _ended(self, flying: dict[int, Job]) -> list[tuple[Outcome, Job]]:
        """Outcomes that came in, each with its job, which flies no more; late and doubled replies are dropped."""
        began = time.perf_counter()
        outcomes = self._executor.wait(timeout=1.0) if self._executor else []
        self.waited += time.perf_counter() - began
        ended = []
        for outcome in outcomes:
            job = flying.get(outcome.candidate)
            if job is not None and (outcome.phase, outcome.round) == (job.phase, job.round):
                ended.append((outcome, flying.pop(outcome.candidate)))
        return ended

    def _record(self, outcome: Outcome, job: Job) -> bool:
        """Record an outcome; False when the job is to be tried again."""
        key = (job.candidate, job.phase)
        outcome = _answering(outcome, job)
        if not isinstance(outcome, Failed):
            self._store.record(outcome, job=job)
            self._blame.note(key, "scored", "")
            self._keep(job.candidate, job.phase, job.round, outcome.responses)
            self._tokens[job.candidate, job.phase, job.round] = outcome.tokens
            self._scored.setdefault((job.phase, job.items.digest, job.recipe.digest), (job.candidate, job.round))
            return True
        self._blame.note(key, "failed", outcome.stage)
        final = not outcome.retry or self._blame.guilty(key)
        self._store.record(outcome, job=job, final=final)
        if final:
            self._failures[key] = outcome.stage
        return final

    def _keep(self, candidate: int, phase: Phase, number: int, responses: tuple[Responses, ...]) -> None:
        self._rounds.setdefault((candidate, phase), {})[number] = responses

    def _give_up_if_hopeless(self, ended: Sequence[tuple[Outcome, Job]]) -> None:
        outcome = ended[-1][0]
        if self._rounds or len(self._failures) < GIVE_UP_AFTER or not isinstance(outcome, Failed):
            return
        self._store.forgive_failures()  # the next start tries these candidates again
        raise RunError(
            f"the first {len(self._failures)} candidates all failed, the last one at stage {outcome.stage}: "
            f"{outcome.reason}. See the logs in {self._store.folder / 'logs'}; once the cause is repaired, the same "
            "command tries them again."
        )

    def _copy(self, job: Job, twin: int) -> None:
        """Give a job its twin's result, or its twin's failure."""
        source = self._scored.get((job.phase, job.items.digest, job.recipe.digest))
        if source is not None:
            self._store.copy_result(job, source)
            self._keep(job.candidate, job.phase, job.round, self._rounds[source[0], job.phase][source[1]])
            self._tokens[job.candidate, job.phase, job.round] = self.tokens(source[0], job.phase, source[1])
            return
        stage = self._failures[twin, job.phase]
        reason = f"the same recipe failed as candidate {twin}"
        failed = Failed(candidate=job.candidate, phase=job.phase, round=job.round, stage=stage, reason=reason)
        self._store.record(failed, job=self._started(job), final=True)
        self._failures[job.candidate, job.phase] = stage


def _answering(outcome: Outcome, job: Job) -> Outcome:
    """The outcome, or a failure if it does not answer its job: a worker that breaks its contract must not end a run."""
    try:
        check(outcome, job)
    except StoreError as error:
        return Failed(candidate=job.candidate, phase=job.phase, round=job.round, stage="evaluate", reason=str(error))
    return outcome
