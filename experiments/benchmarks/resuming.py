"""Runs whose driver dies at every step, of every algorithm: do they end where an undisturbed one does?

Each driver does one job and dies when it is given the next, in this process: by an exception that nothing in it
catches. So a run of n jobs dies n - 1 times, with everything on record that a killed driver's would have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from synthetic_workers import SyntheticWorkers, drive, experiment

from evomerge.config import AlgorithmConfig, Experiment
from evomerge.opening import Lineup
from evomerge.outcome import Job, Outcome
from evomerge.runs import RunStore
from evomerge.workers import SerialExecutor, WorkerInfo

__all__ = ["CASES", "Resumed", "resumed", "resumed_cases", "two_generations"]

LINEUP = Lineup(base="base", experts=("a", "b", "c"), layers=4, dtype="float32", digest="pool")
ANCHORS = 2 + len(LINEUP.experts)
"""The base, the experts and their average."""
SPACES: tuple[dict[str, Any], ...] = (
    {
        "kind": "parameter",
        "operator": {"name": "task_arithmetic"},
        "knots": 1,
        "genes": {"weight": {"low": 0, "high": 1, "edges": "first"}},
    },
    {"kind": "soup"},
    {"kind": "routing"},
)
"""An algorithm searches the first that it takes."""
KEYS: dict[str, dict[str, Any]] = {
    "islands": {"population": 12},
    "grid": {"levels": 3, "population": 14},
    "refined": {
        "stages": [
            {"knots": 1, "evaluations": 12, "algorithm": {"kind": "islands", "population": 12}},
            {"algorithm": {"kind": "nsga2", "population": 6}},
        ]
    },
}
"""What an algorithm needs other than a population of 6."""


def _cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, config in AlgorithmConfig.kinds.items():
        keys = {"kind": kind, **KEYS.get(kind, {"population": 6})}
        yield kind, keys
        if getattr(config, "steady", False):
            yield f"{kind}, in flight", {**keys, "in_flight": 3}
    yield "map, improvement", {"kind": "map", "population": 6, "acquisition": "improvement"}
    yield "map, nested", {"kind": "map", "population": 6, "nested": 2}


CASES = dict(_cases())
"""Every registered algorithm, without generations too where it can, and its forms that remember other things."""


class Killed(BaseException):
    """The end of a driver, which nothing in it may catch."""


class Mortal:
    """A worker whose driver dies when it is given more jobs than so many.

    Attributes:
        done: jobs so far.
    """

    def __init__(self, jobs: int) -> None:
        self._worker = SyntheticWorkers()
        self._jobs = jobs
        self.done = 0

    def info(self) -> WorkerInfo:
        """What it answers."""
        info: WorkerInfo = self._worker.info()
        return info

    def run(self, job: Job) -> Outcome:
        """Answers, or dies."""
        if self.done == self._jobs:
            raise Killed
        self.done += 1
        outcome: Outcome = self._worker.run(job)
        return outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """What became of a run that died at every step.

    Attributes:
        jobs: of the undisturbed run.
        deaths: of drivers.
        same: whether both runs determined the same, byte by byte.
    """

    jobs: int
    deaths: int
    same: bool

    @property
    def met(self) -> bool:
        """Whether nothing was lost, nothing done twice, and nothing else came out."""
        return self.same and self.deaths == self.jobs - 1


def two_generations(keys: dict[str, Any]) -> int:
    """Evaluations after which an algorithm has learned something and asked again: a short run."""
    return 2 * _algorithm(keys).population_at(0)


def resumed(keys: dict[str, Any], evaluations: int, folder: Path) -> Resumed:
    """One run undisturbed and one that dies before each of its jobs but the first, in an empty folder."""
    config = _experiment(keys, evaluations)
    whole = Mortal(10 * evaluations)
    drive(folder / "whole", config, SerialExecutor(lambda: whole), LINEUP)
    deaths = 0
    while True:
        try:
            drive(folder / "killed", config, SerialExecutor(lambda: Mortal(1)), LINEUP)
            break
        except Killed:
            deaths += 1
    one, other = (_archive(folder / name) for name in ("whole", "killed"))
    return Resumed(jobs=whole.done, deaths=deaths, same=one == other)


def resumed_cases(evaluations: int | None) -> Iterator[tuple[str, Resumed]]:
    """Every case, by name; None for two generations of each."""
    for name, keys in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            yield name, resumed(keys, evaluations or two_generations(keys), Path(folder))


def _algorithm(keys: dict[str, Any]) -> AlgorithmConfig:
    config: AlgorithmConfig = TypeAdapter(AlgorithmConfig).validate_python(keys)
    return config


def _experiment(keys: dict[str, Any], evaluations: int) -> Experiment:
    algorithm = _algorithm(keys)
    space = next(space for space in SPACES if not algorithm.misfit(2, space=space["kind"]))
    config: Experiment = experiment(
        evaluations=ANCHORS + evaluations,
        population=6,
        pool={"base": "/nowhere/base", "experts": {name: f"/nowhere/{name}" for name in LINEUP.experts}},
        space={**space, "knots": 2} if keys["kind"] == "refined" else space,
        algorithm=keys,
    )
    return config


def _archive(folder: Path) -> bytes:
    with RunStore.read(folder) as store:
        archive: bytes = store.archive()
    return archive
