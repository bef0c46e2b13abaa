"""One worker in this process: deterministic, easy to debug."""

from __future__ import annotations

from collections import deque

from evomerge.errors import RunError
from evomerge.outcome import Job, Outcome
from evomerge.workers.base import StartFailure, Worker, WorkerFactory, WorkerInfo, run_safely
from evomerge.workers.isolated import run_isolated

__all__ = ["SerialExecutor"]


class SerialExecutor:
    """Runs one job in each `wait`, in the order of submission.

    Args:
        factory: makes the worker.
    """

    capacity = 1

    def __init__(self, factory: WorkerFactory) -> None:
        self._factory = factory
        self._worker: Worker | None = None
        self._started = False
        self._queue: deque[Job] = deque()

    def start(self) -> WorkerInfo:
        """Makes the worker."""
        try:
            self._worker = self._factory()
            self._started = True
            return self._worker.info()
        except Exception as error:
            raise StartFailure.of(error).to_error() from error

    def submit(self, job: Job) -> None:
        """Queues a job."""
        self._queue.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        """Does the next job, however long it takes."""
        if not self._queue:
            return []
        if not self._started:
            raise RunError("the executor is not running; call start() first")
        job = self._queue.popleft()
        if job.alone:
            self._worker = None  # its memory is needed now; made again for the next, once this outcome is recorded
            return [run_isolated(self._factory, job)]
        self._worker = self._worker or self._factory()
        return [run_safely(self._worker, job, "serial")]

    def close(self) -> None:
        """Lets the worker go."""
        self._worker, self._started = None, False
        self._queue.clear()
