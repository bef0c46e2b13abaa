"""Searches on the tiny family of the quickstart, many in one process: one live model, and no job is done twice.

A search is what `evomerge run` does, run folder and confirmation included; only its worker stays, and remembers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from evomerge.config import load_experiment
from evomerge.fitting import space_of
from evomerge.launch import sole_worker_spec
from evomerge.opening import open_run
from evomerge.outcome import Job, Outcome, Responses
from evomerge.pareto import hypervolume
from evomerge.pools import lineup_of, open_pool
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers.base import WorkerInfo
from evomerge.workers.candidate import MergeWorker
from evomerge.workers.serial import SerialExecutor

__all__ = ["Found", "searched"]

_ENGINE = ["executor={kind: serial}", "engine.batch_size=128", "engine.threads=1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a search is worth, all on items that it never saw.

    Attributes:
        volume: hypervolume of the finalists, from a score of 0 in every objective, as a share of all there is.
        mean: mean score of the best finalist on the whole. It is chosen by one half of the items and scored on the
            other, both ways, so its luck in being chosen does not count.
        parent: mean score of the best parent.
        average: mean score of the uniform average.
    """

    volume: float
    mean: float
    parent: float
    average: float


def searched(settings: Sequence[str], seed: int) -> Found:
    """One search of the quickstart with some settings changed."""
    experiment = load_experiment("quickstart", [*_ENGINE, *settings, f"seed={seed}"])
    pool = open_pool(experiment)
    lineup = lineup_of(experiment, pool)
    space, executor = space_of(experiment, lineup), SerialExecutor(_worker)
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder, "run"), experiment, lineup, space) as store:
        info = executor.start()
        for _ in Search(experiment, lineup, store=store, executor=executor, info=info).run(Stop()):
            pass
        labels = {number: label for number, label in store.labels().items() if label}
        return found(store.responses("confirm"), labels)


def found(confirmed: Mapping[int, Sequence[Responses]], anchors: Mapping[int, str]) -> Found:
    """What confirmation items say.

    Args:
        confirmed: answers by candidate, all to the same items.
        anchors: labels of those that are anchors.
    """
    tables = {number: np.array([response.values for response in each]) for number, each in confirmed.items()}
    finalists = [table for number, table in tables.items() if number not in anchors]
    scores = np.array([table.mean(axis=1) for table in finalists])
    halves = [[float(table[:, part::2].mean()) for table in finalists] for part in (0, 1)]
    unseen = [halves[1 - part][int(np.argmax(halves[part]))] for part in (0, 1)]
    means = {anchors[number]: float(table.mean()) for number, table in tables.items() if number in anchors}
    average = means.pop("uniform")
    return Found(
        volume=hypervolume(-scores, [0.0] * scores.shape[1]),
        mean=float(np.mean(unseen)),
        parent=max(means.values()),
        average=average,
    )


class _Remembering:
    """A worker that answers a job that it did before from memory, whoever asks."""

    def __init__(self, worker: MergeWorker) -> None:
        self._worker = worker
        self._known: dict[tuple[str, str], Outcome] = {}

    def info(self) -> WorkerInfo:
        """The worker's."""
        return self._worker.info()

    def run(self, job: Job) -> Outcome:
        """Done now, or before."""
        key = (job.recipe.digest, job.items.digest)
        if key not in self._known:
            self._known[key] = self._worker.run(job)
        return replace(self._known[key], candidate=job.candidate, phase=job.phase, round=job.round)


@cache
def _worker() -> _Remembering:
    """One for all searches: they share models and tasks, and a seed changes nothing in how these items are asked."""
    experiment = load_experiment("quickstart", _ENGINE)
    spec = sole_worker_spec(experiment, open_pool(experiment))
    return _Remembering(MergeWorker(replace(spec, products=True)))  # crossings need them
