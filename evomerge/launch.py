"""From an experiment to a run in its folder: opens the pool, starts workers, drives the search, closes everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evomerge.config import Experiment
from evomerge.merging.pool import ModelPool
from evomerge.opening import Lineup, is_complete, open_run, space_of
from evomerge.search import Progress, Search
from evomerge.stopping import Stop
from evomerge.workers import WorkerSpec, build_executor

__all__ = ["launch", "lineup_of", "open_pool"]


def open_pool(experiment: Experiment) -> ModelPool:
    """The experiment's models, checked for everything that would keep them from being merged.

    Raises:
        PoolError: they cannot be read, or do not fit each other.
    """
    return ModelPool.open(experiment.pool.base, experiment.pool.experts, tokenizer=experiment.pool.tokenizer)


def lineup_of(experiment: Experiment, pool: ModelPool) -> Lineup:
    """What the search must know of the pool."""
    dtype = experiment.engine.dtype
    return Lineup(
        base=pool.base,
        experts=pool.experts,
        layers=pool.layers,
        dtype=pool.dtype if dtype == "pool" else dtype,
        digest=pool.digest,
    )


def launch(experiment: Experiment, folder: Path, stop: Stop) -> Iterator[Progress]:
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

    Yields:
        One record after each settled candidate.

    Raises:
        EvomergeError: see the exception tree; the folder is left whole, and the same call resumes.
    """
    lineup = lineup_of(experiment, open_pool(experiment))
    with open_run(folder, experiment, lineup, space_of(experiment, lineup)) as store:
        spec = WorkerSpec(
            pool=experiment.pool,
            fitness=experiment.fitness,
            engine=experiment.engine,
            seed=experiment.seed,
            log=folder / "logs",
        )
        if is_complete(store, experiment):
            return
        executor = build_executor(experiment.executor, spec)
        try:
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
