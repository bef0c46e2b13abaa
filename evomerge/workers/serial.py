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
        self._queue: deque[Job] = deque()

    def start(self) -> WorkerInfo:
        """Makes the worker."""
        try:
            self._worker = self._factory()
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
        if self._worker is None:
            raise RunError("the executor is not running; call start() first")
        job = self._queue.popleft()
        if not job.alone:
            return [run_safely(self._worker, job, "serial")]
        self._worker = None  # its memory is needed now, and it is easily made again
        try:
            return [run_isolated(self._factory, job)]
        finally:
            self._worker = self._factory()

    def close(self) -> None:
        """Lets the worker go."""
        self._worker = None
        self._queue.clear()
