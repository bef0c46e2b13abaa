"""lm-eval tasks of a fitness: built from their files and checked against the objectives.

Knows how lm-eval describes a task; knows nothing of models.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.config.faults import near
from evomerge.engines.base import stay_offline
from evomerge.engines.task_files import Faults, find_task_files
from evomerge.errors import TaskError
from evomerge.fitness.leaks import FILE_BUILDERS
from evomerge.rng import derive_seed

if TYPE_CHECKING:
    from evomerge.config import FitnessConfig, Metric

__all__ = ["TOKENS", "BenchTask", "load_tasks"]

TOKENS = "tokens"
"""The metric that counts what a model writes; of every task that lets it write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchTask:
    """One lm-eval task that objectives use.

    Attributes:
        task: the `lm_eval.api.task.Task`.
        size: number of its items; item ids count from 0 in the order of its documents.
        filters: for each metric that is read, the filter whose output it scores; sorted by metric.
    """

    name: str
    task: Any
    size: int
    filters: Mapping[str, str]


def load_tasks(fitness: FitnessConfig, seed: int) -> tuple[BenchTask, ...]:
    """Build every task that the objectives name, scorers aside.

    A task's `num_fewshot` is set to the objective's `few_shot`. All items of a task get the same worked examples, so
    that an item's score does not depend on which other items are scored beside it.

    Args:
        fitness: task files and objectives.
        seed: run seed; picks the worked examples.

    Returns:
        The tasks, sorted by name.

    Raises:
        TaskError: every fault of every objective, together.
    """
    stay_offline()
    files, faults, tasks = find_task_files(fitness.tasks), Faults(), []
    for name in sorted(fitness.scorers.keys() & files.tasks.keys()):
        faults.append(f"task {name!r}: defined twice, in {files.tasks[name]} and as a scorer; rename one")
    for name in sorted({objective.task for objective in fitness.metrics} - fitness.scorers.keys()):
        objectives = [objective for objective in fitness.metrics if objective.task == name]
        file = faults.attempt(files.file_of, name)
        faults.extend(_conflicts(name, objectives))
        if file is not None:
            tasks.append(_load(file, objectives, seed, faults))
    faults.check()
    return tuple(task for task in tasks if task is not None)


def _conflicts(name: str, objectives: Sequence[Metric]) -> Iterator[str]:
    shots = sorted({objective.few_shot for objective in objectives})
    if len(shots) > 1:
        yield f"task {name!r}: one task has one number of worked examples; its objectives ask for few_shot {shots}"
    for metric in sorted({objective.metric for objective in objectives}):
        filters = {objective.filter for objective in objectives if objective.metric == metric}
        if len(filters) > 1:
            yield f"task {name!r}: metric {metric!r} is read through one filter; its objectives ask for {filters}"


def _load(file: Path, objectives: Sequence[Metric], seed: int, faults: Faults) -> BenchTask | None:
    name, shots = objectives[0].task, objectives[0].few_shot
    task = faults.attempt(_build, name, file, shots)
    if task is None:
        return None
    if shots:
        faults.attempt(_pin_examples, task, shots, derive_seed(seed, "few-shot", name))
    filters = {o.metric: faults.attempt(_filter_of, task, o) or "" for o in objectives}
    return BenchTask(name=name, task=task, size=len(task.eval_docs), filters=dict(sorted(filters.items())))


def _build(name: str, file: Path, shots: int) -> Any:
    """The lm-eval task of a file, read into memory; no cache on disk is used or left behind."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    with tempfile.TemporaryDirectory(prefix="evomerge-") as scratch:
        try:
            config = load_yaml(file)
            _refuse_unsupported(name, config)
            config["num_fewshot"] = shots
            if config.get("dataset_path") in FILE_BUILDERS:
                data = _absolute(name, file, config.get("dataset_kwargs") or {})
                config["dataset_kwargs"] = {**data, "cache_dir": scratch, "keep_in_memory": True}
            return ConfigurableTask(config={k: v for k, v in config.items() if k not in ("tag", "group", "task_list")})
        except TaskError:
            raise
        except Exception as error:  # a task file runs lm-eval, datasets and the user's own functions
            raise TaskError(
                f"task {name!r} ({file}): lm-eval cannot build it: {type(error).__name__}: {error}; stock tasks need "
                "their data set on this machine, or HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0 to fetch it"
            ) from error


def _refuse_unsupported(name: str, config: Mapping[str, Any]) -> None:
    for key, reason in {
        "class": "it is a Python class rather than a declaration",
        "unsafe_code": "it runs code that the model wrote",
        "doc_to_image": "it needs a model that sees images",
        "doc_to_audio": "it needs a model that hears",
    }.items():
        if config.get(key):
            raise TaskError(f"task {name!r}: not supported, because {reason} ({key}); choose another task")


def _absolute(name: str, file: Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`dataset_kwargs` whose `data_files` stand beside the task file.

    Raises:
        TaskError: a data file that is missing or empty.
    """

    def place(path: Any) -> Any:
        if isinstance(path, dict):
            return {split: place(value) for split, value in path.items()}
        if isinstance(path, list):
            return [place(value) for value in path]
        if "://" in path or "*" in path:
            return path if "://" in path else str(file.parent / path)
        found = file.parent / path
        if not found.is_file() or found.stat().st_size == 0:
            got = "an empty file" if found.is_file() else "nothing"
            raise TaskError(f"task {name!r} ({file}): expected items in {found}; got {got}")
        return str(found)

    return {key: place(value) if key == "data_files" else value for key, value in arguments.items()}


class _SameDraw(random.Random):
    """Draws the same sample every time it is asked for the same number of things."""

    def __init__(self, seed: int) -> None:
        self._again = seed
        super().__init__(seed)

    def sample(self, population: Any, k: int, **kwargs: Any) -> list[Any]:
        self.seed(self._again)
        return super().sample(population, k, **kwargs)


def _pin_examples(task: Any, shots: int, seed: int) -> None:
    """Give every item of a task the same worked examples, from outside the scored items."""
    config = task.config
    if task.fewshot_cfg.samples is None or task.fewshot_cfg.split is not None:
        scored = config.test_split or config.validation_split
        split = task.fewshot_cfg.split or config.training_split or config.validation_split or config.test_split
        if split == scored:
            raise TaskError(
                f"task {config.task!r}: expected worked examples from a split that is not scored; got {split!r}, whose "
                "answers would stand in the prompts; set fewshot_split in the task file, or few_shot: 0"
            )
    if len(task.sampler.df) < shots:
        raise TaskError(f"task {config.task!r}: expected at least {shots} worked examples; got {len(task.sampler.df)}")
    task.sampler.rnd = _SameDraw(seed)


def _filter_of(task: Any, objective: Metric) -> str:
    """The filter through which an objective reads its metric.

    Raises:
        TaskError: no such metric or filter, several filters and no choice, or a metric that is no mean over items.
    """
    from lm_eval.api.metrics import mean

    where = f"objective {objective.name!r}: task {objective.task!r}"
    means = sorted(metric for metric, aggregate in task.aggregation().items() if aggregate is mean)
    means += [TOKENS] if task.OUTPUT_TYPE == "generate_until" else []
    if objective.metric not in means:
        if objective.metric in task.aggregation():
            fault = f": metric {objective.metric!r} is not a mean over items, and only means can be optimized"
        else:
            fault = f" has no metric {objective.metric!r}{near(objective.metric, means)}"
        raise TaskError(f"{where}{fault}; usable metrics: {means}")
    names = [ensemble.name for ensemble in task._filters]
    if objective.filter is None and len(names) > 1:
        raise TaskError(f"{where} has several filters; set filter to one of {names}")
    chosen = names[0] if objective.filter is None else objective.filter
    if chosen not in names:
        raise TaskError(f"{where} has no filter {chosen!r}{near(chosen, names)}; it has {names}")
    return chosen
