from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from evomerge.config import RayConfig
from evomerge.errors import DiskError, PoolError, RunError
from evomerge.outcome import Failed, ItemSet, Job, Outcome, Responses, Scored
from evomerge.recipe import uniform
from evomerge.workers import WorkerInfo

ITEMS = ItemSet.of({"t": (0, 3, 5)})
RECIPE = uniform(("a", "b"), layers=2, dtype="float32")


def make_job(candidate: int, attempt: int = 1) -> Job:
    return Job(candidate=candidate, phase="search", recipe=RECIPE, items=ITEMS, attempt=attempt)


@dataclass
class ToyWorker:
    """Scores by arithmetic, and misbehaves on request.

    Attributes:
        acts: what happens to a candidate's first attempt, by number.
        trail: a file that takes the process id and the candidate of every run.
        seconds: that a run takes.
    """

    acts: Mapping[int, str] = field(default_factory=dict)
    trail: Path | None = None
    seconds: float = 0.0

    def info(self) -> WorkerInfo:
        versions = {"pid": str(os.getpid()), "threads": os.environ.get("OMP_NUM_THREADS", "")}
        return WorkerInfo(sizes={"t": 10}, versions=versions, pool_digest="d")

    def run(self, job: Job) -> Outcome:
        if self.trail is not None:
            with self.trail.open("a") as file:
                file.write(f"{os.getpid()} {job.candidate}\n")
        time.sleep(self.seconds)
        act = self.acts.get(job.candidate) if job.attempt == 1 else None
        if act == "fail":
            return Failed(
                candidate=job.candidate, phase=job.phase, stage="materialize", reason="as asked", worker="toy"
            )
        if act == "raise":
            raise ValueError("a broken\npromise")
        if act == "stop":
            raise RunError("the server is gone")
        if act == "full":
            raise DiskError("no room")
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "hang":
            time.sleep(600)
        ((task, ids),) = job.items.tasks
        responses = (
            Responses(task=task, metric="acc", items=ids, values=tuple(float(i + job.candidate) for i in ids)),
        )
        return Scored(
            candidate=job.candidate,
            phase=job.phase,
            round=job.round,
            responses=responses,
            seconds={"forward": 0.01},
            worker="toy",
        )


class MakeToy:
    """A factory that can be sent to another process; `flag` makes it break while the file is there."""

    def __init__(
        self,
        acts: Mapping[int, str] | None = None,
        trail: Path | None = None,
        flag: Path | None = None,
        how: str = "",
        seconds: float = 0.0,
    ) -> None:
        self.acts, self.trail, self.flag, self.how, self.seconds = acts or {}, trail, flag, how, seconds

    def __call__(self) -> ToyWorker:
        if (self.flag is None and self.how) or (self.flag is not None and self.flag.exists()):
            if self.how == "pool":
                raise PoolError("expected 2 layers in 'rev'; got 3")
            if self.how == "hang":
                time.sleep(600)
            raise RuntimeError("no such device")
        return ToyWorker(self.acts, self.trail, self.seconds)


@pytest.fixture(scope="session")
def toys() -> type[MakeToy]:
    return MakeToy


@pytest.fixture(scope="session")
def job_of() -> Callable[..., Job]:
    return make_job


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One local cluster for all tests; executors join it and leave it running."""
    from evomerge.workers.ray_cluster import RayCluster

    cluster = RayCluster(RayConfig(kind="ray", workers=2))
    ray = cluster.connect()
    ray.cloudpickle.register_pickle_by_value(sys.modules[MakeToy.__module__])  # actors cannot import test files
    yield
    cluster.close()
