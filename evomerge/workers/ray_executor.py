"""Workers as Ray actors: one model in each, one call in flight on each.

Ray's own restarts and retries are off, so that every death is seen, reported as a `Failed` attempt and followed by a
replacement. Whether a job is tried again is the caller's business.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evomerge.config import RayConfig
from evomerge.errors import ConfigError, Fault, RunError
from evomerge.outcome import Job, Outcome, Stage
from evomerge.workers.base import (
    START_TRIES,
    StartFailure,
    Worker,
    WorkerFactory,
    WorkerInfo,
    failed,
    one_line,
    run_safely,
)
from evomerge.workers.ray_cluster import RayCluster

__all__ = ["RayExecutor"]

_UNREACHABLE_SECONDS = 60.0  # a worker that cannot be reached is not dead; it may take this long to come back
_RETRY_SECONDS = 1.0
_GET_SECONDS = 60.0


class _Host:
    """Lives in the actor process: holds the worker, and lets no exception out."""

    def start(self, factory: WorkerFactory, threads: int) -> WorkerInfo | StartFailure:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before the factory imports torch
        try:
            self._worker: Worker = factory()
            return self._worker.info()
        except Exception as error:
            return StartFailure.of(error)

    def run(self, job: Job) -> Outcome:
        return run_safely(self._worker, job, f"pid {os.getpid()}")


@dataclass(slots=True, eq=False)
class _Slot:
    """One place for a worker.

    Attributes:
        call: the call in flight, if any.
        job: the job it does; None while it starts or idles.
        due: when patience with the call ends; monotonic seconds.
        up: it came up.
        unreachable: its node did not answer; the job is sent again at `again`.
    """

    actor: Any
    call: Any
    due: float
    job: Job | None = None
    up: bool = False
    unreachable: bool = False
    again: float = 0.0


class RayExecutor:
    """Keeps one job in flight on each of `config.workers` actors.

    Args:
        config: cluster, resources and patience.
        factory: makes a worker inside the actor process; pickled.
        threads: CPU threads per worker.
    """

    def __init__(self, config: RayConfig, factory: WorkerFactory, *, threads: int = 1) -> None:
        self._config = config
        self._factory = factory
        self._threads = threads
        self._cluster = RayCluster(config)
        self._ray: Any = None
        self._slots: list[_Slot] = []
        self._queue: deque[Job] = deque()
        self._outcomes: list[Outcome] = []
        self._info: WorkerInfo | None = None
        self._failed_starts: list[StartFailure] = []

    @property
    def capacity(self) -> int:
        """Workers that are up or coming up."""
        return len(self._slots)

    def start(self) -> WorkerInfo:
        """Starts all workers side by side and returns when the first is up.

        Raises:
            ConfigError: more workers than this machine's CPUs can hold, where no cluster is named.
        """
        self._check_fit()
        try:
            self._ray = self._cluster.connect()
            self._slots = [self._launch() for _ in range(self._config.workers)]
            while self._info is None:
                self._advance(time.monotonic() + 1.0)
        except BaseException:
            self.close()
            raise
        return self._info

    def _check_fit(self) -> None:
        wanted, there = self._config.workers * self._config.cpus, os.cpu_count() or 1
        if self._config.address is None and wanted > there:
            message = (
                f"{self._config.workers} workers of {self._config.cpus:g} CPUs each do not fit this machine's {there}"
            )
            hint = "lower workers or cpus, or name a cluster in executor.address"
            raise ConfigError("executor", [Fault(path="$.executor.workers", message=f"{message}; {hint}")])

    def submit(self, job: Job) -> None:
        """Queues a job for the next idle worker."""
        self._queue.append(job)

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call."""
        until = time.monotonic() + timeout
        while True:
            self._dispatch()
            if not self._queue and all(slot.job is None for slot in self._slots):
                break
            self._advance(until)
            if self._outcomes or time.monotonic() >= until:
                break
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Kills the workers and ends the cluster if it is our own."""
        for slot in self._slots:
            self._kill(slot)
        self._slots, self._outcomes = [], []
        self._queue.clear()
        self._cluster.close()

    def _launch(self) -> _Slot:
        config = self._config
        options = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = self._ray.remote(**options)(_Host).remote()
        call = actor.start.remote(self._factory, self._threads)
        return _Slot(actor=actor, call=call, due=time.monotonic() + config.start_timeout_seconds)

    def _kill(self, slot: _Slot) -> None:
        with suppress(Exception):  # it may be dead, or its cluster gone
            self._ray.kill(slot.actor)

    def _dispatch(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.up and slot.job is None and self._queue:
                slot.job, slot.due = self._queue.popleft(), now + self._config.job_timeout_seconds
                slot.unreachable = False
                slot.call = slot.actor.run.remote(slot.job)
            elif slot.job is not None and slot.call is None and now >= slot.again:
                slot.call = slot.actor.run.remote(slot.job)

    def _advance(self, until: float) -> None:
        """Waits for one call to end, for patience to end, or for the given time; then deals with it."""
        if not self._slots:
            raise self._failed_starts[-1].to_error()
        calls = {slot.call: slot for slot in self._slots if slot.call is not None}
        moments = [until, *(slot.due for slot in calls.values())]
        moments += [slot.again for slot in self._slots if slot.job is not None and slot.call is None]
        seconds = max(0.0, min(moments) - time.monotonic())
        if calls:
            # always with a timeout: without one, ray.wait has returned empty-handed
            ready, _ = self._ray.wait(list(calls), num_returns=1, timeout=seconds)
            for call in ready:
                self._settle(calls[call], call)
        else:
            time.sleep(seconds)
        for slot in [slot for slot in self._slots if slot.call is not None and time.monotonic() >= slot.due]:
            self._expire(slot)

    def _settle(self, slot: _Slot, call: Any) -> None:
        slot.call = None
        try:
            value = self._ray.get(call, timeout=_GET_SECONDS)
        except Exception as error:
            if slot.job is None:
                self._start_failed(slot, _unexplained(error))
            else:
                self._call_failed(slot, slot.job, error)
            return
        if slot.job is not None:
            slot.job = None
            self._outcomes.append(value)
        elif isinstance(value, StartFailure):
            self._start_failed(slot, value)
        else:
            slot.up, self._info = True, self._info or value
            self._failed_starts.clear()

    def _start_failed(self, slot: _Slot, failure: StartFailure) -> None:
        """Tries again, unless it is hopeless: then the run ends before any worker was up, and loses a slot later."""
        self._kill(slot)
        self._slots.remove(slot)
        self._failed_starts.append(failure)
        hopeless = failure.known is not None or len(self._failed_starts) >= START_TRIES
        if not hopeless:
            self._slots.append(self._launch())
        elif self._info is None:
            raise failure.to_error()

    def _call_failed(self, slot: _Slot, job: Job, error: Exception) -> None:
        errors = self._ray.exceptions
        if isinstance(error, errors.ActorUnavailableError):
            # Not dead: its node is slow or cut off. Time, not the number of tries, decides.
            now = time.monotonic()
            slot.again = now + _RETRY_SECONDS
            slot.due = slot.due if slot.unreachable else min(slot.due, now + _UNREACHABLE_SECONDS)
            slot.unreachable = True
            if now >= slot.due:
                self._replace(slot, job, "worker", f"could not be reached for {_UNREACHABLE_SECONDS:g} s")
        elif isinstance(error, errors.RayTaskError):
            slot.job = None
            self._outcomes.append(failed(job, one_line(error), "ray"))
        else:
            self._replace(slot, job, "worker", _cause_of_death(error))

    def _expire(self, slot: _Slot) -> None:
        if slot.job is None:
            self._start_failed(slot, self._never_came_up())
        elif slot.unreachable:
            self._replace(slot, slot.job, "worker", f"could not be reached for {_UNREACHABLE_SECONDS:g} s")
        else:
            limit = self._config.job_timeout_seconds
            self._replace(slot, slot.job, "timeout", f"took longer than {limit:g} s (executor.job_timeout_seconds)")

    def _replace(self, slot: _Slot, job: Job, stage: Stage, reason: str) -> None:
        self._kill(slot)
        self._outcomes.append(failed(job, reason, "ray", stage=stage))
        self._slots[self._slots.index(slot)] = self._launch()

    def _never_came_up(self) -> StartFailure:
        config = self._config
        there, free = _resources(self._ray.cluster_resources()), _resources(self._ray.available_resources())
        message = (
            f"expected a worker within {config.start_timeout_seconds:g} s (executor.start_timeout_seconds); got none; "
            f"each asks for {config.cpus:g} CPU and {config.gpus:g} GPU, the cluster has {there}, of which free: "
            f"{free}; lower the demands, wait longer or enlarge the cluster"
        )
        return StartFailure(known=RunError, message=message, state={}, text=message)


def _unexplained(error: Exception) -> StartFailure:
    return StartFailure(known=None, message=str(error), state={}, text=str(error))


def _cause_of_death(error: Exception) -> str:
    """Ray's page of text as one line."""
    if getattr(error, "preempted", False):
        return "the node was taken away (preempted)"
    if type(error).__name__ == "OutOfMemoryError":
        return "the worker was killed because its node ran out of memory"
    detail = re.search(r"exit detail: (.+?)\.(?:\s|$)", str(error))
    return f"the worker process died: {detail[1]}" if detail else one_line(error)


def _resources(amounts: dict[str, float]) -> str:
    return f"{amounts.get('CPU', 0):g} CPU and {amounts.get('GPU', 0):g} GPU"
