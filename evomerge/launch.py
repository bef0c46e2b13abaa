"""From an experiment to a run in its folder: opens the pool, starts workers, drives the search, closes everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from evomerge.config import ExecutorConfig, Experiment, RayConfig
from evomerge.engines.calibration import calibrate
from evomerge.guard import warnings_of
from evomerge.merging.configured import configured_pool
from evomerge.merging.lora import adapters_of
from evomerge.merging.pool import ModelPool
from evomerge.merging.variants import prepare
from evomerge.opening import Lineup, is_complete, open_run, space_of
from evomerge.search import Progress, Search
from evomerge.stopping import Stop
from evomerge.workers import WorkerSpec, build_executor
from evomerge.workers.candidate import quiet

__all__ = ["launch", "lineup_of", "open_pool"]


def open_pool(experiment: Experiment) -> ModelPool:
    """The experiment's models, checked for everything that would keep them from being merged.

    Raises:
        PoolError: they cannot be read, do not fit each other, or are no adapters where the operator needs some.
    """
    pool = configured_pool(experiment.pool)
    if experiment.space.operator.space == "core":
        adapters_of(pool.models, pool.experts)
    return pool


def lineup_of(experiment: Experiment, pool: ModelPool) -> Lineup:
    """What the search must know of the pool."""
    dtype = experiment.engine.dtype
    return Lineup(
        base=pool.base,
        experts=pool.experts,
        layers=pool.layers,
        dtype=pool.dtype if dtype == "pool" else dtype,
        digest=pool.digest,
        calibration="" if pool.calibration is None else pool.calibration.digest,
    )


def launch(
    experiment: Experiment, folder: Path, stop: Stop, note: Callable[[str], None] = lambda _: None
) -> Iterator[Progress]:
    """Run an experiment in a folder, or go on with the run that is there.

    Example:
        ::

            experiment = load_experiment("quickstart", ["executor={kind: serial}"])
            for progress in launch(experiment, Path("runs/mine"), Stop()):
                print(progress.done, progress.planned)

    Args:
        experiment: resolved experiment.
        folder: the run folder; made if it is not there.
        stop: a wish to stop; see `Stop.listening`.
        note: takes a line about each thing that was prepared, which may have taken long; and warnings.

    Yields:
        One record after each settled candidate.

    Raises:
        EvomergeError: see the exception tree; the folder is left whole, and the same call resumes.
    """
    pool = open_pool(experiment)
    lineup = lineup_of(experiment, pool)
    with open_run(folder, experiment, lineup, space_of(experiment, lineup)) as store:
        spec = WorkerSpec(
            pool=experiment.pool,
            fitness=experiment.fitness,
            engine=experiment.engine,
            seed=experiment.seed,
            transforms=experiment.space.every_transform,
            statistics=experiment.space.statistics,
            log=folder / "logs",
            workers=_workers_per_machine(experiment.executor),
            gpu=_share_of_a_gpu(experiment.executor),
        )
        warnings = warnings_of(experiment)
        store.set_meta("warnings", json.dumps(warnings))
        if is_complete(store, experiment):
            return
        for warning in warnings:
            note(f"warning: {warning}")
        executor = build_executor(experiment.executor, spec)
        try:
            if _workers_are_here(experiment):  # else each node prepares its own, which no one here could see
                if spec.statistics:
                    with quiet(folder / "logs" / "calibration.log"):
                        calibrate(pool, spec.statistics, spec.engine)
                for built in prepare(pool, spec.transforms):
                    note(str(built))
            info = executor.start()
            search = Search(experiment, lineup, store=store, executor=executor, info=info)
        except BaseException:
            executor.close()
            if not store.candidates():
                store.discard()  # nothing began, so whatever is repaired now, space and tasks included, starts afresh
            raise
        try:
            yield from search.run(stop)
        finally:
            executor.close()


def _workers_are_here(experiment: Experiment) -> bool:
    """Whether all workers run on this machine, and so share its cache."""
    return not isinstance(experiment.executor, RayConfig) or experiment.executor.address is None


def _workers_per_machine(executor: ExecutorConfig) -> int:
    """1 on a cluster, where it is Ray's choice."""
    return executor.workers if isinstance(executor, RayConfig) and executor.address is None else 1


def _share_of_a_gpu(executor: ExecutorConfig) -> float:
    return min(executor.gpus, 1.0) or 1.0 if isinstance(executor, RayConfig) else 1.0
