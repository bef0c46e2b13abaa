"""What makes an experiment's result worth less than it looks, or none of it possible, said before anything is spent.

Needs no lm-eval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evomerge.config import Experiment, FitnessConfig, FunctionConfig
from evomerge.config.faults import near
from evomerge.engines.item_files import read_rows, rows_of
from evomerge.engines.task_files import Faults, find_task_files, read_task
from evomerge.errors import TaskError
from evomerge.fitness import duplicates_of, public_split, require_items

__all__ = ["refuse_too_few", "unfound_tasks", "warnings_of"]


def unfound_tasks(fitness: FitnessConfig) -> tuple[str, ...]:
    """One note for each task that only lm-eval may have, where it is not installed and nobody can tell.

    Raises:
        TaskError: task files that cannot be read, and every task that neither they nor an installed lm-eval have.
    """
    files, faults = find_task_files(fitness.tasks), Faults()
    elsewhere = {measured.task for measured in fitness.metrics} - fitness.scorers.keys() - files.tasks.keys()
    if find_spec("lm_eval") is None:
        return tuple(
            f"the task {name!r} is in no file under fitness.tasks{near(name, files.tasks)}; lm-eval, which may have "
            "it, is not installed here, so only the run will tell"
            for name in sorted(elsewhere)
        )
    for name in sorted(elsewhere):
        faults.attempt(files.file_of, name)
    faults.check()
    return ()


def refuse_too_few(fitness: FitnessConfig) -> None:
    """Count the items that lie in local files; those of other tasks are counted by the run.

    Raises:
        TaskError: every task with too few of them to search and confirm.
    """
    rows = {name: rows_of(*task) for name, task in _task_files(fitness).items()}
    for name in {measured.task for measured in fitness.metrics} & fitness.scorers.keys():
        if isinstance(scorer := fitness.scorers[name], FunctionConfig):
            source = scorer.items
            rows[name] = read_rows(source) if isinstance(source, Path) else tuple(map(str, range(source)))
    known = {name: found for name, found in rows.items() if found is not None}
    duplicates = {name: duplicates_of(found) for name, found in known.items()}
    require_items({name: len(found) for name, found in known.items()}, fitness.items, duplicates)


def warnings_of(experiment: Experiment) -> tuple[str, ...]:
    """One line for each thing that a search should not optimize on. Tasks that cannot be read are not judged."""
    tasks = _task_files(experiment.fitness)
    return (*_public(tasks), *_calibrated(experiment, tasks), *_drawn(experiment), *_idle(experiment))


def _task_files(fitness: FitnessConfig) -> dict[str, tuple[Path, dict[str, Any]]]:
    """File and content of every lm-eval task that is measured."""
    try:
        files = find_task_files(fitness.tasks)
    except TaskError:
        return {}
    found = {}
    for name in sorted({measured.task for measured in fitness.metrics} - fitness.scorers.keys()):
        try:
            file = files.file_of(name)
            found[name] = file, read_task(file)
        except TaskError:
            continue
    return found


def _public(tasks: Mapping[str, tuple[Path, dict[str, Any]]]) -> Iterator[str]:
    for name, (_, content) in tasks.items():
        if (public := public_split(content)) is not None:
            yield (
                f"task {name!r} scores {public}, which published results are about: a search that optimizes on it "
                "spoils it for judging the merged model; copy the task file and set test_split to a training split, or "
                "bring items of your own"
            )


def _calibrated(experiment: Experiment, tasks: Mapping[str, tuple[Path, dict[str, Any]]]) -> Iterator[str]:
    """Files that both prepare the models and score them."""
    texts = {path.resolve() for path in experiment.pool.texts.values()}
    for name, scored in (*_scorer_files(experiment.fitness), *_data_files(tasks)):
        if scored.resolve() in texts:
            yield (
                f"{scored} is the calibration text and scores the task {name!r}: candidates that use it are favoured; "
                "use another text for one of them"
            )


def _drawn(experiment: Experiment) -> Iterator[str]:
    """An algorithm that would compare little."""
    algorithm = experiment.algorithm
    if algorithm.meets_items and experiment.fitness.items.draw == "fresh":
        yield (
            f"{algorithm.kind} compares candidates of all generations item by item, but each generation answers other "
            "items; set fitness.items.draw to fixed"
        )


def _idle(experiment: Experiment) -> Iterator[str]:
    """Workers that would have nothing to do."""
    in_flight, workers = experiment.algorithm.in_flight, getattr(experiment.executor, "most", 1)
    if in_flight is not None and in_flight < workers:
        yield (
            f"algorithm.in_flight: {in_flight} candidates in work keep no more workers busy than that; got {workers} "
            "workers; start a new run with more in flight, or use fewer workers"
        )


def _scorer_files(fitness: FitnessConfig) -> Iterator[tuple[str, Path]]:
    for name, scorer in fitness.scorers.items():
        file = scorer.items if isinstance(scorer, FunctionConfig) else scorer.text
        if isinstance(file, Path):
            yield name, file


def _data_files(tasks: Mapping[str, tuple[Path, dict[str, Any]]]) -> Iterator[tuple[str, Path]]:
    for name, (file, content) in tasks.items():
        files = (content.get("dataset_kwargs") or {}).get("data_files")
        named = files.values() if isinstance(files, dict) else [files]
        for path in (path for entry in named for path in (entry if isinstance(entry, list) else [entry])):
            if isinstance(path, str):
                yield name, file.parent / path
