"""Gives every candidate a result or a final failure, whatever happens to the workers on the way.

Execution is at least once, accounting exactly once: attempts may be lost and repeated, but a (candidate, phase) is
settled once. Knows nothing of algorithms, genomes or generations.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from evomerge.errors import RunError, StoreError
from evomerge.outcome import Failed, ItemSet, Job, Outcome, Phase, Responses, Stage
from evomerge.runs import Candidate, RunStore, check
from evomerge.stopping import Stop
from evomerge.workers import Executor

__all__ = ["Drained", "Evaluator", "Unsettled"]

MAX_DEATHS = 2
"""A candidate that costs this many workers is failed for good."""
GIVE_UP_AFTER = 8
"""Failures without a single success after which the run stops: the fault is not the candidates'."""

_Key = tuple[int, Phase]


class Drained(Exception):  # noqa: N818 - a way out of nested loops, not an error
    """A stop was asked for, and nothing is in flight any more."""


class Unsettled(Exception):  # noqa: N818 - likewise
    """Something would have to be evaluated, and there is no executor."""


class Evaluator:
    """Settles candidates through an executor, and takes from the store what is settled already.

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
        self._deaths: Counter[_Key] = Counter((a.candidate, a.phase) for a in attempts if a.status == "failed")
        self._failures: dict[_Key, Stage] = {(f.candidate, f.phase): f.stage for f in store.failures()}
        recipes = {candidate.id: candidate.recipe.digest for candidate in store.candidates()}
        results = store.results()
        self._results = {(result.candidate, result.phase): result.responses for result in results}
        self._scored = {(r.phase, r.items_digest, recipes[r.candidate]): r.candidate for r in reversed(results)}
        self.waited = 0.0

    @property
    def failures(self) -> int:
        """How many (candidate, phase) were given up."""
        return len(self._failures)

    def responses(self, candidate: int, phase: Phase) -> tuple[Responses, ...] | None:
        """What a candidate answered; None if it has no result."""
        return self._results.get((candidate, phase))

    def settle(self, candidates: Sequence[Candidate], phase: Phase, items: ItemSet, stop: Stop) -> Iterator[int]:
        """Settle some candidates on the same items.

        Yields:
            After each candidate, how many of them are settled.

        Raises:
            Drained: a stop was asked for before all were settled.
            Unsettled: there is no executor.
            RunError: nothing can be evaluated.
        """
        open_, twins = self._unsettled(candidates, phase, items)
        if self._executor is None and (open_ or twins):
            raise Unsettled
        queue = deque(Job(candidate=c.id, phase=phase, recipe=c.recipe, items=items) for c in open_)
        flying: dict[int, Job] = {}
        settled = len(candidates) - len(open_) - len(twins)
        while queue or flying:
            self._dispatch(queue, flying, stop)
            for outcome in self._wait():
                job = flying.get(outcome.candidate)
                if job is None or outcome.phase != phase:
                    continue  # a late or doubled reply: its job is settled
                del flying[outcome.candidate]
                if self._record(outcome, job):
                    settled += 1
                    yield settled
                else:
                    queue.appendleft(job)
        for candidate, twin in twins:
            self._copy(candidate, twin, phase, items)
            settled += 1
            yield settled

    def _unsettled(
        self, candidates: Sequence[Candidate], phase: Phase, items: ItemSet
    ) -> tuple[list[Candidate], list[tuple[Candidate, int]]]:
        """Candidates to score, and twins: pairs of a candidate and the one whose result or failure it shares.

        Equal recipe and equal items mean one evaluation.
        """
        first = {c.recipe.digest: c.id for c in reversed(candidates) if (c.id, phase) in self._failures}
        open_, twins = [], []
        for candidate in candidates:
            key, digest = (candidate.id, phase), candidate.recipe.digest
            if key in self._results or key in self._failures:
                continue
            twin = self._scored.get((phase, items.digest, digest), first.get(digest))
            if twin is None:
                first[digest] = candidate.id
                open_.append(candidate)
            else:
                twins.append((candidate, twin))
        return open_, twins

    def _dispatch(self, queue: deque[Job], flying: dict[int, Job], stop: Stop) -> None:
        if stop.requested and not flying:
            raise Drained
        while queue and self._executor and len(flying) < self._executor.capacity and not stop.requested:
            job = self._started(queue.popleft())
            flying[job.candidate] = job
            self._executor.submit(job)

    def _started(self, job: Job) -> Job:
        """The job as its next attempt, which is recorded before anything costly starts."""
        key = (job.candidate, job.phase)
        self._attempts[key] += 1
        job = replace(job, attempt=self._attempts[key])
        self._store.start_attempt(job)
        return job

    def _wait(self) -> list[Outcome]:
        began = time.perf_counter()
        outcomes = self._executor.wait(timeout=1.0) if self._executor else []
        self.waited += time.perf_counter() - began
        return outcomes

    def _record(self, outcome: Outcome, job: Job) -> bool:
        """Record an outcome; False when the job is to be tried again."""
        key = (job.candidate, job.phase)
        outcome = _answering(outcome, job)
        if not isinstance(outcome, Failed):
            self._store.record(outcome, job=job)
            self._results[key] = outcome.responses
            self._scored.setdefault((job.phase, job.items.digest, job.recipe.digest), job.candidate)
            return True
        self._deaths[key] += 1
        final = not outcome.retry or self._deaths[key] >= MAX_DEATHS
        self._store.record(outcome, job=job, final=final)
        if final:
            self._failures[key] = outcome.stage
            self._give_up_if_hopeless(outcome)
        return final

    def _give_up_if_hopeless(self, outcome: Failed) -> None:
        if self._results or len(self._failures) < GIVE_UP_AFTER:
            return
        self._store.forgive_failures()  # the next start tries these candidates again
        raise RunError(
            f"the first {len(self._failures)} candidates all failed, the last one at stage {outcome.stage}: "
            f"{outcome.reason}. See the logs in {self._store.folder / 'logs'}; once the cause is repaired, the same "
            "command tries them again."
        )

    def _copy(self, candidate: Candidate, twin: int, phase: Phase, items: ItemSet) -> None:
        """Give a candidate its twin's result, or its twin's failure."""
        key = (candidate.id, phase)
        if (twin, phase) in self._results:
            self._store.copy_result(candidate.id, phase, twin)
            self._results[key] = self._results[twin, phase]
            return
        stage = self._failures[twin, phase]
        job = self._started(Job(candidate=candidate.id, phase=phase, recipe=candidate.recipe, items=items))
        reason = f"the same recipe failed as candidate {twin}"
        failed = Failed(candidate=candidate.id, phase=phase, stage=stage, reason=reason)
        self._store.record(failed, job=job, final=True)
        self._failures[key] = stage


def _answering(outcome: Outcome, job: Job) -> Outcome:
    """The outcome, or a failure if it does not answer its job: a worker that breaks its contract must not end a run."""
    try:
        check(outcome, job)
    except StoreError as error:
        return Failed(candidate=job.candidate, phase=job.phase, stage="evaluate", reason=str(error))
    return outcome
