"""Workers as Ray actors: one model in each, every attempt reported, whatever happens to processes and nodes.

A dead, stuck or unreachable worker costs the attempt that it was at, and is replaced. Whether a job is tried again is
the caller's business.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from typing import Any

from evomerge.config import RayConfig
from evomerge.errors import ConfigError, DiskError, Fault, RunError
from evomerge.outcome import Job, Outcome, Scored, Stage
from evomerge.workers.base import StartFailure, WorkerFactory, WorkerInfo, failed, one_line
from evomerge.workers.pace import Pace
from evomerge.workers.ray_cluster import RayCluster
from evomerge.workers.ray_crew import Call, Crew, Slot
from evomerge.workers.ray_metrics import Metrics
from evomerge.workers.rota import Rota, Share

__all__ = ["RayExecutor"]

_UNREACHABLE_SECONDS = 60.0  # a worker that cannot be reached is not dead; it may take this long to come back
_RETRY_SECONDS = 1.0
_GET_SECONDS = 60.0
_UPKEEP_SECONDS = 1.0
_SHORT_SECONDS = 1.0  # jobs below this are queued at the worker one ahead, to hide the way to the driver and back

_log = logging.getLogger("evomerge.workers")


class RayExecutor:
    """Keeps workers busy: one job running on each, and a second one waiting there if jobs are short.

    Args:
        config: cluster, resources and patience.
        factory: makes a worker inside the actor process; pickled.
        threads: CPU threads per worker.
        shard: most items that a worker is given at a time; workers share what is larger. None: whole jobs.
    """

    def __init__(
        self, config: RayConfig, factory: WorkerFactory, *, threads: int = 1, shard: int | None = None
    ) -> None:
        self._config = config
        self._cluster = RayCluster(config)
        self._pace = Pace(config.job_timeout_seconds)
        self._ray: Any = None
        self._crew = Crew(config, factory, threads)
        self._metrics: Metrics | None = None
        self._rota = Rota(shard)
        self._outcomes: list[Outcome] = []
        self._overdue: set[int] = set()

    @property
    def capacity(self) -> int:
        """Jobs that the workers which are up can take: one each, two if jobs are short; never less than 1."""
        return max(1, len(self._crew.up) * (2 if self._short else 1))

    @property
    def _short(self) -> bool:
        latest = self._pace.latest
        return latest is not None and latest < _SHORT_SECONDS

    @property
    def _slots(self) -> list[Slot]:
        return self._crew.slots

    def start(self) -> WorkerInfo:
        """Starts all workers side by side and returns when the first is up.

        Raises:
            ConfigError: more workers than this machine's CPUs can hold, where no cluster is named.
        """
        self._check_fit()
        try:
            self._ray = self._cluster.connect()
            if self._config.address is not None:
                self._metrics = Metrics()
            self._crew.ray = self._ray
            while self._crew.info is None:
                self._advance(time.monotonic() + _UPKEEP_SECONDS)
        except BaseException:
            self.close()
            raise
        return self._crew.info

    def _check_fit(self) -> None:
        wanted, there = self._config.most * self._config.cpus, os.cpu_count() or 1
        if self._config.address is None and wanted > there:
            message = (
                f"{self._config.most} workers of {self._config.cpus:g} CPUs each do not fit this machine's {there}"
            )
            hint = "lower workers or cpus, or name a cluster in executor.address"
            raise ConfigError("executor", [Fault(path="$.executor.workers", message=f"{message}; {hint}")])

    def submit(self, job: Job) -> None:
        """Queues a job for the next idle worker."""
        self._rota.add(job)

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call; returns early, maybe with nothing, when the number of workers changes."""
        until = time.monotonic() + timeout
        capacity = self.capacity
        while True:
            self._dispatch()
            busy = bool(self._rota) or any(slot.up and slot.calls for slot in self._slots)
            self._advance(until if busy else 0.0)
            if self._outcomes or not busy or self.capacity > capacity or time.monotonic() >= until:
                break
        self._report()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Kills the workers and ends the cluster if it is our own."""
        for slot in list(self._slots):
            self._crew.dismiss(slot)
        self._outcomes = []
        self._rota.clear()
        self._cluster.close()

    def _report(self) -> None:
        if self._metrics is not None:
            working = sum(1 for slot in self._slots if slot.up and slot.calls)
            self._metrics.show(len(self._slots), working, len(self._rota), self._outcomes)

    def _dispatch(self) -> None:
        up = self._crew.up
        for slot in up:
            if not slot.calls and self._send_next(slot):
                self._expect(slot)
        if self._short:
            for slot in up:
                # while others may fall idle first, what is left waits here for whoever does
                if len(slot.calls) == 1 and slot.unreachable is None and len(self._rota) >= len(up):
                    self._send_next(slot)

    def _send_next(self, slot: Slot) -> bool:
        share = self._rota.next(slot.held)
        if share is None:
            return False
        slot.held = share.round
        slot.calls.append(Call(slot.actor.run.remote(share.job), share))
        return True

    def _expect(self, slot: Slot) -> None:
        """Patience with the first call begins."""
        share = slot.calls[0].share if slot.calls else None
        if share is not None:
            slot.due = time.monotonic() + self._patience(share.job)

    def _patience(self, job: Job) -> float:
        late = job.candidate in self._overdue
        return self._config.job_timeout_seconds if late else self._pace.deadline(job)

    def _advance(self, until: float) -> None:
        """Waits for a call to end, for patience to end, or for the given time; then deals with it."""
        self._crew.keep()
        self._send_again()
        calls = {slot.calls[0].ref: slot for slot in self._slots if slot.calls and slot.calls[0].ref is not None}
        moments = [until, time.monotonic() + _UPKEEP_SECONDS, *(slot.due for slot in self._slots if slot.calls)]
        seconds = max(0.0, min(moments) - time.monotonic())
        if calls:
            # always with a timeout: without one, ray.wait has returned empty-handed
            ready, pending = self._ray.wait(list(calls), num_returns=1, timeout=seconds)
            if ready and pending:
                ready += self._ray.wait(pending, num_returns=len(pending), timeout=0)[0]
            for ref in ready:
                self._settle(calls[ref])
        else:
            time.sleep(seconds)
        now = time.monotonic()
        for slot in [slot for slot in self._slots if slot.calls and now >= slot.due]:
            self._expire(slot)

    def _send_again(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            share = slot.calls[0].share if slot.calls else None
            if share is not None and slot.calls[0].ref is None and now >= slot.again:
                slot.calls[0] = Call(slot.actor.run.remote(share.job), share)
                self._expect(slot)

    def _settle(self, slot: Slot) -> None:
        call = slot.calls.popleft()
        try:
            value = self._ray.get(call.ref, timeout=_GET_SECONDS)
        except Exception as error:
            if call.share is None:
                self._start_failed(slot, error)
            else:
                self._call_failed(slot, call.share, error)
            return
        if call.share is None:
            self._crew.arrived(slot, value)
            return
        slot.unreachable = None
        self._came(call.share, value)
        if isinstance(value, Scored):
            self._pace.saw(call.share.job, value)
            if slot.place is not None:
                self._crew.nodes.fine(slot.place.node)
        self._expect(slot)

    def _came(self, share: Share, outcome: Outcome) -> None:
        """A share came back, and with it maybe the last of its job."""
        whole = self._rota.done(share, outcome)
        if whole is not None:
            self._outcomes.append(whole)

    def _start_failed(self, slot: Slot, error: Exception) -> None:
        lost = _stage_of(error) == "node"
        failure = StartFailure(known=None, message=one_line(error), state={}, text=str(error))
        self._crew.failed(slot, failure, lost_node=lost)

    def _call_failed(self, slot: Slot, share: Share, error: Exception) -> None:
        errors = self._ray.exceptions
        if isinstance(error, errors.ActorUnavailableError):
            self._postpone(slot, share)
        elif isinstance(error, errors.RayTaskError):
            if isinstance(error.cause, (RunError, DiskError)):
                raise error.cause
            self._came(share, failed(share.job, one_line(error), slot.name))
            self._expect(slot)
        else:
            self._lose(slot, share, _stage_of(error), _cause_of_death(error))

    def _postpone(self, slot: Slot, share: Share) -> None:
        """Not dead: its node is slow or cut off. Time, not the number of tries, decides when it is given up."""
        now = time.monotonic()
        if slot.unreachable is None or now - slot.again > _UNREACHABLE_SECONDS:
            slot.unreachable = now
        if now - slot.unreachable >= _UNREACHABLE_SECONDS:
            self._lose(slot, share, "node", f"could not be reached for {_UNREACHABLE_SECONDS:g} s")
            return
        self._take_back(slot)
        slot.held = share.round  # and not what waited behind it, which others may make now
        slot.calls.append(Call(None, share))
        slot.again, slot.due = now + _RETRY_SECONDS, math.inf

    def _expire(self, slot: Slot) -> None:
        share = slot.calls[0].share
        if share is None:
            self._crew.failed(slot, self._crew.never_came_up())
            return
        slot.calls.popleft()
        limit, seconds = self._config.job_timeout_seconds, self._patience(share.job)
        self._overdue.add(share.job.candidate)
        allowed = "executor.job_timeout_seconds" if seconds == limit else "many times what such jobs take"
        self._lose(slot, share, "timeout", f"took longer than {seconds:g} s ({allowed})")

    def _lose(self, slot: Slot, share: Share, stage: Stage, reason: str) -> None:
        """A worker is gone, and with it the job that it was at; one that waited behind that goes elsewhere."""
        self._take_back(slot)
        self._came(share, failed(share.job, reason, slot.name, stage=stage))
        self._crew.dismiss(slot)
        if slot.place is not None and stage == "node":
            self._crew.nodes.gone(slot.place.node)
        elif stage != "node":
            self._crew.charge(slot, share.job.candidate)
        _log.info("%s lost at candidate %d: %s", slot.name, share.job.candidate, reason)

    def _take_back(self, slot: Slot) -> None:
        for call in reversed(slot.calls):
            if call.share is not None:
                self._rota.give_back(call.share)
        slot.calls.clear()


def _stage_of(error: Exception) -> Stage:
    """`node` if the worker went down with its node, for which no candidate is to blame."""
    taken = getattr(error, "preempted", False) or "its node has died" in str(error)
    return "node" if taken else "worker"


def _cause_of_death(error: Exception) -> str:
    """Ray's page of text as one line."""
    if getattr(error, "preempted", False):
        return "the node was taken away (preempted)"
    if _stage_of(error) == "node":
        return "the node vanished"
    if type(error).__name__ == "OutOfMemoryError":
        return "the worker was killed because its node ran out of memory"
    detail = re.search(r"exit detail: (.+?)\.(?:\s|$)", str(error))
    return f"the worker process died: {detail[1]}" if detail else one_line(error)
