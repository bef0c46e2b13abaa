"""From an experiment to a run in its folder: opens the pool, starts workers, drives the search, closes everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread

from evomerge.config import ExecutorConfig, Experiment, OpenaiConfig, PathSpaceConfig, RayConfig, plugin_digests
from evomerge.engines.calibration import calibrate
from evomerge.fitting import space_of
from evomerge.guard import refuse_too_few, warnings_of
from evomerge.merging.footprint import Memory, choose, footprints, needs_of
from evomerge.merging.pool import ModelPool
from evomerge.merging.variants import prepare
from evomerge.opening import is_complete, open_run
from evomerge.pools import children_of, lineup_of, open_pool, pinned, placed, repeats_in
from evomerge.reports import extreme_warnings, summarize
from evomerge.runs import RunStore
from evomerge.search import Progress, Search
from evomerge.stopping import Stop
from evomerge.trackers import require_trackers, tracking
from evomerge.workers import WorkerSpec, build_executor
from evomerge.workers.candidate import quiet
from evomerge.workers.journal import journal

__all__ = ["check_memory", "launch", "most_layers", "sole_worker_spec", "worker_spec"]

_ANY_DEVICE = 1 << 60


def launch(
    experiment: Experiment, folder: Path, stop: Stop, note: Callable[[str], None] = lambda _: None
) -> Generator[Progress, None, None]:
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
    require_trackers(experiment.trackers)
    refuse_too_few(experiment.fitness)
    experiment = pinned(experiment, folder)
    pool = open_pool(experiment)
    lineup = lineup_of(experiment, pool)
    check_memory(experiment, pool, lineup.dtype)
    with open_run(folder, experiment, lineup, space_of(experiment, lineup), note) as store, ExitStack() as stack:
        spec = worker_spec(experiment, pool, folder.resolve() / "logs")
        warnings = (*warnings_of(experiment), *repeats_in(pool))
        store.set_meta("children", json.dumps(children_of(experiment.pool)))
        store.set_meta("warnings", json.dumps(warnings))
        if is_complete(store, experiment):
            return
        for warning in warnings:
            note(f"warning: {warning}")
        workers = getattr(experiment.executor, "most", 1)
        note(f"starting {workers} worker{'s' * (workers > 1)} ({experiment.executor.kind})")
        executor = build_executor(experiment.executor, spec)
        stack.enter_context(journal(folder / "logs" / "driver.log", lambda line: note(f"warning: {line}")))
        try:
            if _workers_are_here(experiment):  # else each node prepares its own, which no one here could see
                if spec.statistics:
                    with quiet(folder / "logs" / "calibration.log"):
                        calibrate(pool, spec.statistics, spec.engine)
                for built in prepare(pool, spec.transforms):
                    note(str(built))
            _load_beside(experiment.algorithm.library)
            info = executor.start()
            for task, ids in info.duplicates.items():
                note(f"task {task!r}: {len(ids)} of {info.sizes[task]} items ask what an earlier one asks; left out")
            search = Search(experiment, lineup, store=store, executor=executor, info=info)
        except BaseException:
            executor.close()
            if not store.candidates():
                store.discard()  # nothing began, so whatever is repaired now, space and tasks included, starts afresh
            raise
        try:
            with tracking(experiment, folder, note) as track:
                for progress in _watched(search.run(stop), experiment, store, note):
                    track()
                    yield progress
        finally:
            executor.close()


def _load_beside(library: str | None) -> None:
    """Begin to import a library beside the start of the executor, so that its first generation need not wait."""
    if library is not None:
        Thread(target=import_module, args=(library,), daemon=True).start()


def _watched(
    steps: Iterable[Progress], experiment: Experiment, store: RunStore, note: Callable[[str], None]
) -> Iterator[Progress]:
    """The steps of a search. As soon as the anchors are scored, notes what tells no model from another."""
    early = True
    for step in steps:
        if early and step.generation == 0 and step.done >= experiment.anchors:
            early, summary = False, summarize(store)
            for warning in extreme_warnings(summary.entries.values(), summary.objectives):
                note(f"warning: {warning}")
        yield step


def worker_spec(experiment: Experiment, pool: ModelPool, log: Path) -> WorkerSpec:
    """What the workers of a run need.

    Args:
        experiment: the run's.
        pool: its models.
        log: folder of the workers' log files.
    """
    return replace(
        sole_worker_spec(experiment, pool),
        products=experiment.space.needs_products,
        log=log,
        workers=_workers_per_machine(experiment.executor),
        gpu=_share_of_a_gpu(experiment.executor),
        stage=getattr(experiment.executor, "stage", None),
        contents=pool.contents,
    )


def sole_worker_spec(experiment: Experiment, pool: ModelPool) -> WorkerSpec:
    """What a worker needs that has the machine to itself and scores candidates that are there already."""
    return WorkerSpec(
        pool=placed(experiment.pool),
        fitness=experiment.fitness,
        engine=experiment.engine,
        seed=experiment.seed,
        plugins=experiment.plugins,
        plugin_digests=plugin_digests(experiment.plugins),
        transforms=experiment.space.every_transform,
        statistics=experiment.space.statistics,
        depth=most_layers(experiment, pool),
    )


def check_memory(experiment: Experiment, pool: ModelPool, dtype: str) -> None:
    """That a worker's share of host memory holds what it will take, where the profile tells the share.

    Raises:
        ConfigError: it does not.
    """
    engine, executor = experiment.engine, experiment.executor
    share = getattr(executor, "memory_gib", None)
    if share is not None and not isinstance(engine, OpenaiConfig):
        on_device = getattr(executor, "gpus", 0) > 0
        # a GPU is measured where it is, by the worker: here only what lies in host memory is planned
        memory = Memory(device=_ANY_DEVICE if on_device else None, host=int(share * 2**30))
        needs = needs_of(pool, dtype, engine.deltas, depth=most_layers(experiment, pool))
        choose(footprints(needs, on_device=on_device), memory, engine.residency)


def most_layers(experiment: Experiment, pool: ModelPool) -> int:
    """Most layers of any candidate."""
    space = experiment.space
    return space.lengths(pool.layers)[1] if isinstance(space, PathSpaceConfig) else pool.layers


def _workers_are_here(experiment: Experiment) -> bool:
    """Whether all workers run on this machine, and so share its cache."""
    return not isinstance(experiment.executor, RayConfig) or experiment.executor.address is None


def _workers_per_machine(executor: ExecutorConfig) -> int:
    """1 on a cluster, where it is Ray's choice."""
    return executor.most if isinstance(executor, RayConfig) and executor.address is None else 1


def _share_of_a_gpu(executor: ExecutorConfig) -> float:
    return min(executor.gpus, 1.0) or 1.0 if isinstance(executor, RayConfig) else 1.0
