"""What runs inside a Ray actor: says where it is, makes a worker, does jobs, and lets no exception out."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.outcome import Job, Outcome
from evomerge.workers.base import StartFailure, Worker, WorkerFactory, WorkerInfo, run_safely
from evomerge.workers.versions import versions_here

__all__ = ["Host", "Place"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an actor came up.

    Attributes:
        node: Ray's id of the node.
        name: host and process, for people.
        clock: unix seconds there.
        versions: of what decides scores.
    """

    node: str
    name: str
    clock: float
    versions: Mapping[str, str]


class Host:
    """Lives in the actor's process and holds its worker."""

    def place(self) -> Place:
        """Where this is; answers as soon as the cluster has room for the actor."""
        import ray

        return Place(
            node=ray.get_runtime_context().get_node_id(),
            name=f"{socket.gethostname()}-{os.getpid()}",
            clock=time.time(),
            versions=versions_here(),
        )

    def start(self, factory: WorkerFactory, threads: int) -> WorkerInfo | StartFailure:
        """Makes the worker."""
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before the factory imports torch
        try:
            self._worker: Worker = factory()
            return self._worker.info()
        except Exception as error:
            return StartFailure.of(error)

    def run(self, job: Job) -> Outcome:
        """Does a job."""
        return run_safely(self._worker, job, f"{socket.gethostname()}-{os.getpid()}")
