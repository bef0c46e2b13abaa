"""What a cluster's monitoring may show of a run, through `ray.util.metrics`: to Prometheus, where Ray's agent runs."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import require
from evomerge.outcome import Failed, Outcome

__all__ = ["Metrics"]


class Metrics:
    """Gauges of workers and of the queue, counters of attempts. Ray must be connected."""

    def __init__(self) -> None:
        metrics = require("ray.util.metrics", "ray")
        self._workers = metrics.Gauge("evomerge_workers", "Workers that are up or coming up.")
        self._working = metrics.Gauge("evomerge_working", "Workers that have a job.")
        self._queue = metrics.Gauge("evomerge_queue", "Jobs that wait for a worker.")
        self._attempts = metrics.Counter("evomerge_attempts", "Attempts that ended, by how.", tag_keys=("how",))

    def show(self, workers: int, working: int, queue: int, ended: Sequence[Outcome]) -> None:
        """Publishes how things stand, and adds the attempts that ended since the last call."""
        self._workers.set(workers)
        self._working.set(working)
        self._queue.set(queue)
        for outcome in ended:
            self._attempts.inc(1, {"how": outcome.stage if isinstance(outcome, Failed) else "scored"})
