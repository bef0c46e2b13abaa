"""An executor that goes wrong on request, with a clock of its own: for tests of whatever drives executors.

Workers are real and run in this process; deaths, delays and lost replies follow a script; no real time passes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from evomerge.errors import EvomergeError, RunError
from evomerge.outcome import Job, Outcome
from evomerge.workers.base import START_TRIES, StartFailure, Worker, WorkerFactory, WorkerInfo, failed, run_safely

__all__ = ["Fault", "FaultyExecutor", "Script"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one attempt.

    Attributes:
        kind: `die`: the worker dies in mid-job. `hang`: it never answers and is replaced. `lose`: it does the job but
            its answer is lost, so that it is replaced too. `late`: as `lose`, but the answer turns up afterwards.
            `repeat`: the answer comes twice. `slow`: it comes later, after that of other jobs. `late` and `repeat`
            break the contract of executors on purpose.
        seconds: virtual delay of `late`, `repeat` and `slow`.
    """

    kind: Literal["die", "hang", "lose", "late", "repeat", "slow"]
    seconds: float = 0.0


Script = Callable[[Job], Fault | None]
"""Which fault, if any, befalls an attempt."""


@dataclass(slots=True)
class _Slot:
    worker: Worker
    free_at: float


class FaultyExecutor:
    """Follows a script of faults; deterministic.

    Example:
        >>> executor = FaultyExecutor(  # doctest: +SKIP
        ...     factory, script=lambda job: Fault("die") if (job.candidate, job.attempt) == (3, 1) else None
        ... )

    Args:
        factory: makes a worker.
        script: what goes wrong when.
        workers: how many jobs run side by side.
        start_errors: raised by the first constructions of a worker, one each; None lets one pass.
        job_seconds: virtual time of a job.
        timeout_seconds: virtual time after which a worker that does not answer is replaced.

    Attributes:
        now: virtual seconds since the executor was made.
    """

    def __init__(
        self,
        factory: WorkerFactory,
        *,
        script: Script = lambda _: None,
        workers: int = 2,
        start_errors: Sequence[Exception | None] = (),
        job_seconds: float = 1.0,
        timeout_seconds: float = 60.0,
    ) -> None:
        self.now = 0.0
        self._factory = factory
        self._script = script
        self._workers = workers
        self._start_errors = iter(start_errors)
        self._job_seconds = job_seconds
        self._timeout_seconds = timeout_seconds
        self._slots: list[_Slot] = []
        self._replies: list[tuple[float, int, Outcome]] = []
        self._order = count()

    @property
    def capacity(self) -> int:
        """Workers that are left."""
        return len(self._slots)

    def start(self) -> WorkerInfo:
        """Makes all workers."""
        self._slots = [_Slot(self._make(), self.now) for _ in range(self._workers)]
        return self._slots[0].worker.info()

    def submit(self, job: Job) -> None:
        """Plans the job on the worker that is free first."""
        if self._slots:
            slot = min(self._slots, key=lambda slot: slot.free_at)
            for at, outcome in self._play(slot, job):
                heapq.heappush(self._replies, (at, next(self._order), outcome))

    def wait(self, timeout: float) -> list[Outcome]:
        """Moves the clock to the next replies, at most by `timeout`."""
        if not self._replies:
            if not self._slots:
                raise RunError("no worker is left")
            return []
        until, self.now = self.now + timeout, min(self.now + timeout, max(self.now, self._replies[0][0]))
        due = []
        while self._replies and self._replies[0][0] <= min(self.now, until):
            due.append(heapq.heappop(self._replies)[2])
        return due

    def close(self) -> None:
        """Drops workers and replies."""
        self._slots, self._replies = [], []

    def _play(self, slot: _Slot, job: Job) -> Iterator[tuple[float, Outcome]]:
        begin = max(self.now, slot.free_at)
        end, overdue = begin + self._job_seconds, begin + self._timeout_seconds
        match self._script(job):
            case None:
                slot.free_at = end
                yield end, run_safely(slot.worker, job)
            case Fault("slow", seconds):
                slot.free_at = end + seconds
                yield end + seconds, run_safely(slot.worker, job)
            case Fault("repeat", seconds):
                slot.free_at = end
                outcome = run_safely(slot.worker, job)
                yield from ((end, outcome), (end + seconds, outcome))
            case Fault("die"):
                yield (begin + end) / 2, failed(job, "the worker died, as scripted", "faulty")
                self._replace(slot, (begin + end) / 2)
            case Fault(kind, seconds):
                if kind != "hang":
                    outcome = run_safely(slot.worker, job)
                    if kind == "late":
                        yield overdue + seconds, outcome
                yield overdue, failed(job, f"no answer within {self._timeout_seconds:g} s", "faulty", stage="timeout")
                self._replace(slot, overdue)

    def _replace(self, slot: _Slot, at: float) -> None:
        try:
            slot.worker, slot.free_at = self._make(), at
        except EvomergeError:
            self._slots.remove(slot)

    def _make(self) -> Worker:
        for attempt in range(1, START_TRIES + 1):
            try:
                if error := next(self._start_errors, None):
                    raise error
                return self._factory()
            except Exception as error:
                if attempt == START_TRIES or isinstance(error, EvomergeError):
                    raise StartFailure.of(error).to_error() from error
        raise AssertionError("unreachable")
