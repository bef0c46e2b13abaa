"""Contracts of this room: what a worker and an executor must do. Knows nothing of models, Ray or run folders."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from evomerge.config import EngineConfig, FitnessConfig, PoolConfig
from evomerge.errors import DiskError, EvomergeError, RunError
from evomerge.outcome import Failed, Job, Outcome, Stage
from evomerge.recipe.transform_table import Need
from evomerge.secrecy import redacted
from evomerge.spaces import Products

__all__ = [
    "START_TRIES",
    "Executor",
    "StartFailure",
    "Worker",
    "WorkerFactory",
    "WorkerInfo",
    "WorkerSpec",
    "failed",
    "one_line",
    "run_safely",
]

START_TRIES = 2
"""Starts that may fail in a row before an executor gives a worker up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSpec:
    """All that a worker needs, small enough to send anywhere.

    Attributes:
        plugins: files that are run first, and the digest of each by file name.
        transforms: those that candidates may ask for.
        statistics: what must be known of the models, beside their weights.
        log: folder of the workers' log files; None throws their noise away.
        products: whether the search asks for the scalar products of the models' weights.
        depth: most layers of a candidate; None for as many as the models have.
        workers: how many share a machine; 1 where that is not known.
        gpu: share of a GPU that each may take.
        stage: folder on the worker's own disk that models are copied to and read from; None reads them where they are.
        contents: what the models hold, by name, for those copies.
    """

    pool: PoolConfig
    fitness: FitnessConfig
    engine: EngineConfig
    seed: int
    plugins: tuple[Path, ...] = ()
    plugin_digests: Mapping[str, str] = field(default_factory=dict)
    transforms: tuple[str, ...] = ()
    statistics: frozenset[Need] = frozenset()
    products: bool = False
    log: Path | None = None
    depth: int | None = None
    workers: int = 1
    gpu: float = 1.0
    stage: Path | None = None
    contents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerInfo:
    """What a worker found when it came up.

    Attributes:
        sizes: number of items by task.
        digests: content digest of every task's items and prompts, by task.
        duplicates: ids of the items that repeat an earlier one, by task; only tasks that have such items.
        versions: versions by package.
        pool_digest: content digest of the models.
        screen: content digest of what candidates are screened with; empty if they are not.
        products: scalar products of their weights, if the search asks for them.
    """

    sizes: Mapping[str, int]
    digests: Mapping[str, str] = field(default_factory=dict)
    duplicates: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    versions: Mapping[str, str] = field(default_factory=dict)
    pool_digest: str = ""
    screen: str = ""
    products: Products | None = None


class Worker(Protocol):
    """Holds a live model and does one job at a time."""

    def info(self) -> WorkerInfo:
        """What it found when it came up."""
        ...

    def run(self, job: Job) -> Outcome:
        """Does a job. Whatever goes wrong comes back as `Failed`; nothing is raised but a wish to stop.

        Raises:
            RunError: something is gone that every candidate needs, such as a server.
            DiskError: a disk that every candidate needs is full.
        """
        ...


WorkerFactory = Callable[[], Worker]
"""Makes a worker where it is called; picklable for executors that call it in another process."""


class Executor(Protocol):
    """Runs jobs on workers. Reports every attempt exactly once; trying again is the caller's business.

    Jobs may be submitted at any time; outcomes come in the order of completion.
    """

    @property
    def capacity(self) -> int:
        """Jobs worth having in flight now; changes as workers come and go."""
        ...

    def start(self) -> WorkerInfo:
        """Blocks until the first worker is up.

        Raises:
            EvomergeError: what the worker itself raised, such as `PoolError` or `TaskError`.
            RunError: the worker cannot start for any other reason; holds its traceback.
        """
        ...

    def submit(self, job: Job) -> None:
        """Takes a job and returns at once."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Outcomes since the last call; waits for one up to `timeout` seconds, and not at all if no job is in flight.

        It may return sooner and with nothing, as when a worker joins.

        Raises:
            RunError: no worker is left and none can be started, or one says that the run cannot go on.
            DiskError: a worker's disk is full.
        """
        ...

    def close(self) -> None:
        """Stops the workers; a second call does nothing."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StartFailure:
    """Why a worker did not come up, as data that can cross a process boundary.

    Attributes:
        known: the error's type, if evomerge raised it on purpose.
        state: its attributes.
        text: the traceback.
    """

    known: type[EvomergeError] | None
    message: str
    state: Mapping[str, Any]
    text: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """From the exception being handled."""
        known = type(error) if isinstance(error, EvomergeError) else None
        text = "".join(traceback.format_exception(error)).strip()
        state = dict(vars(error)) if known else {}
        return cls(known=known, message=redacted(str(error)), state=state, text=redacted(text))

    def to_error(self) -> EvomergeError:
        """The exception again, of its own type if evomerge raised it."""
        if self.known is None:
            return RunError(f"no worker could be started; repair the cause and run again. It said:\n{self.text}")
        error = self.known.__new__(self.known, self.message)  # not the constructor: its arguments are not known here
        vars(error).update(self.state)
        return error


def run_safely(worker: Worker, job: Job, name: str = "") -> Outcome:
    """A job on a worker that may break its promises: to raise nothing, and to answer the job that it was given.

    Raises:
        RunError, DiskError: the worker says that the run cannot go on.
    """
    try:
        outcome = worker.run(job)
    except (RunError, DiskError):
        raise
    except Exception as error:
        return failed(job, one_line(error), name)
    asked, answered = _place(job), _place(outcome)
    if answered != asked:
        reason = f"expected the outcome of candidate, phase and round {asked}; got that of {answered}"
        return failed(job, f"{reason}; repair the worker", name, retry=False)
    return outcome


def _place(record: object) -> tuple[object, ...]:
    return tuple(getattr(record, name, None) for name in ("candidate", "phase", "round"))


def failed(job: Job, reason: str, name: str, *, stage: Stage = "worker", retry: bool = True) -> Failed:
    """A job that a worker or its executor could not do."""
    return Failed(
        candidate=job.candidate,
        phase=job.phase,
        round=job.round,
        stage=stage,
        reason=reason,
        retry=retry,
        worker=name,
    )


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as one line for people."""
    text = " ".join(redacted(str(error)).split())
    text = text if isinstance(error, EvomergeError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
