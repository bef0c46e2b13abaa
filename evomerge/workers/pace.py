"""How long jobs take, learned from those that were done. Pure arithmetic on what it is told."""

from __future__ import annotations

from evomerge.outcome import Job, Scored

__all__ = ["Pace"]

_ENOUGH = 5
"""Jobs that must have been seen before anything is said."""

_PATIENCE = 10.0
"""A job may take so many times what is expected: texts that never end take longer than most."""

_LEAST_SECONDS = 60.0
"""Patience with any job: a worker's first candidate also pays for compiling and for cold files."""

_MEMORY = 0.95
"""Weight of the past in the running means."""


class Pace:
    """Running means of the seconds that making a candidate takes, and of those that a unit of work takes.

    A worker that does several shards of a candidate makes it once; the others say nothing of how long that takes.

    Args:
        ceiling: seconds that no job may exceed.
    """

    def __init__(self, ceiling: float) -> None:
        self._ceiling = ceiling
        self._seen = self._makes = 0
        self._held: dict[str, int] = {}  # the candidate that each worker made last
        self._taken = 0.0
        self._made = 0.0
        self._rate = 0.0

    def saw(self, job: Job, outcome: Scored) -> None:
        """Learns from a job that was done."""
        if not outcome.seconds:
            return
        made = outcome.seconds.get("materialize", 0.0)
        taken = sum(outcome.seconds.values())
        rate = (taken - made) / max(1, job.work)
        self._seen += 1
        weight = max(1.0 / self._seen, 1.0 - _MEMORY)
        self._taken += weight * (taken - self._taken)
        self._rate += weight * (rate - self._rate)
        if self._held.get(outcome.worker) != job.candidate:
            self._held[outcome.worker] = job.candidate
            self._makes += 1
            self._made += max(1.0 / self._makes, 1.0 - _MEMORY) * (made - self._made)

    @property
    def latest(self) -> float | None:
        """Seconds of the jobs of late, on average; None before enough was seen."""
        return None if self._seen < _ENOUGH else self._taken

    def expected(self, job: Job) -> float | None:
        """Seconds that a job may take; None before enough was seen."""
        return None if self._seen < _ENOUGH else self._made + self._rate * job.work

    def deadline(self, job: Job) -> float:
        """Seconds after which a job is taken to be stuck."""
        expected = self.expected(job)
        return self._ceiling if expected is None else min(self._ceiling, max(_LEAST_SECONDS, _PATIENCE * expected))
