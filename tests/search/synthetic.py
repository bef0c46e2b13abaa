"""A worker without a model: responses are a fixed function of the recipe and the item."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.config import Experiment
from evomerge.fitting import space_of
from evomerge.opening import Lineup, open_run
from evomerge.outcome import Job, Outcome, Responses, Scored
from evomerge.recipe import Recipe
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor, WorkerInfo

TASKS = ("alpha", "beta")
SIZE = 60
LINEUP = Lineup(base="base", experts=("a", "b"), layers=4, dtype="float32", digest="pool")


def experiment(**changes: object) -> Experiment:
    """A two-objective experiment that decodes on `LINEUP`."""
    data: dict[str, object] = {
        "version": 1,
        "name": "synthetic",
        "pool": {"base": "/nowhere/base", "experts": {"a": "/nowhere/a", "b": "/nowhere/b"}},
        "space": {
            "kind": "parameter",
            "operator": {"name": "task_arithmetic"},
            "knots": 2,
            "genes": {"weight": {"low": 0, "high": 1}},
        },
        "fitness": {
            "tasks": ["/nowhere/tasks"],
            "objectives": [{"name": "alpha", "task": "alpha"}, {"name": "beta", "task": "beta"}],
            "items": {"search": 12, "confirm": 20},
            "confirm": {"shortlist": 3},
        },
        "algorithm": {"kind": "nsga2", "population": 6},
        "budget": {"evaluations": 4 + 3 * 6},
    }
    return Experiment.model_validate(data | changes)


def solved(recipe: Recipe, task: str, item: int) -> float:
    """1 if the item is easier than the recipe is good at the task."""
    weights = [v for _, field in recipe.parameters for _, rows in field.by_role() for row in rows for v in row]
    target = {"alpha": 0.3, "beta": 0.7}[task]
    ability = 1.0 - sum((w - target) ** 2 for w in weights) / len(weights)
    difficulty = hashlib.blake2b(f"{task}{item}".encode(), digest_size=1).digest()[0] / 256
    return float(difficulty < ability)


class SyntheticWorker:
    """Keeps the worker contract; calls `before` ahead of each job, which may raise to end the process's life."""

    def __init__(self, before: Callable[[Job], None] = lambda job: None) -> None:
        self._before = before

    def info(self) -> WorkerInfo:
        return WorkerInfo(sizes=dict.fromkeys(TASKS, SIZE), digests=dict.fromkeys(TASKS, "items"), pool_digest="pool")

    def run(self, job: Job) -> Outcome:
        self._before(job)
        responses = tuple(
            Responses(task=task, metric="acc", items=ids, values=tuple(solved(job.recipe, task, item) for item in ids))
            for task, ids in job.items.tasks
        )
        return Scored(
            candidate=job.candidate, phase=job.phase, round=job.round, responses=responses, seconds={"forward": 0.1}
        )


def drive(folder: Path, config: Experiment, steps: int | None = None, worker: Any = SyntheticWorker) -> None:
    """Run, for some steps at most."""
    executor = SerialExecutor(worker)
    with open_run(folder, config, LINEUP, space_of(config, LINEUP)) as store:
        search = Search(config, LINEUP, store=store, executor=executor, info=executor.start())
        for taken, _ in enumerate(search.run(Stop()), start=1):
            if taken == steps:
                return


def archive(folder: Path) -> bytes:
    """What the run determined."""
    with RunStore.read(folder) as store:
        return store.archive()
