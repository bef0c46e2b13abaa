"""Item banks from runs and from others' responses, and what is in one.

A bank belongs to one task and metric, and to one wording of its prompts: what that is, an experiment's own task says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evomerge.config.engines import transformers_config
from evomerge.config.faults import near
from evomerge.errors import StoreError, TaskError, require_installed
from evomerge.fitness.irt import ItemBank, fit_bank, save_bank
from evomerge.fitness.irt.response_files import ResponseMatrix, read_responses
from evomerge.outcome import Responses, together
from evomerge.pools import open_pool
from evomerge.runs import RunStore

if TYPE_CHECKING:
    from evomerge.config import Experiment
    from evomerge.engines.runner import EvalRunner

__all__ = ["Imported", "describe_bank", "fit_banks", "import_bank", "write_bank"]

_Answers = dict[str, tuple[Responses, ...]]
"""What was answered, by model: pool and recipe together."""


def fit_banks(runs: Sequence[Path], task: str | None = None) -> list[ItemBank]:
    """Fit a bank for every task and metric that runs measured, from their search answers.

    Confirmation answers are left out: they stay unseen by any search. Models that several runs share count once.

    Args:
        runs: run folders.
        task: only this one.

    Returns:
        Banks by task and metric, sorted.

    Raises:
        StoreError: no such run.
        TaskError: nothing answered, no such task, or one that the runs asked in different words.
    """
    answers: _Answers = {}
    digests: dict[str, dict[str, Path]] = {}
    for folder in runs:
        with RunStore.read(folder) as store:
            _collect(store, answers)
            for name, found in json.loads(store.meta("workers") or '{"tasks": {}}')["tasks"].items():
                digests.setdefault(name, {}).setdefault(found["digest"], folder)
    keys = sorted({(r.task, r.metric) for responses in answers.values() for r in responses})
    if task is not None and task not in digests:
        raise TaskError(f"task {task!r}: expected one that these runs measured: {sorted(digests)}{near(task, digests)}")
    if not keys:
        raise TaskError(f"{', '.join(map(str, runs))}: expected answers to search items; got none; run further")
    return [_fitted(answers, key, digests[key[0]]) for key in keys if task in (None, key[0])]


def _collect(store: RunStore, answers: _Answers) -> None:
    """Add a run's search answers to those of equal models."""
    recipes = {candidate.id: candidate.recipe.digest for candidate in store.candidates()}
    pool = store.manifest["pool_digest"]
    for number, responses in store.responses("search").items():
        model = f"{pool} {recipes[number]}"
        answers[model] = together([answers.get(model, ()), responses])


def _fitted(answers: _Answers, key: tuple[str, str], digests: Mapping[str, Path]) -> ItemBank:
    task, metric = key
    if len(digests) > 1:
        raise TaskError(
            f"task {task!r}: expected runs that asked it in the same words; got other items or prompts in "
            f"{' and '.join(map(str, digests.values()))}; fit them apart"
        )
    rows = [
        dict(zip(r.items, r.values, strict=True))
        for each in answers.values()
        for r in each
        if (r.task, r.metric) == key
    ]
    items = tuple(sorted(set().union(*rows)))
    matrix = np.array([[row.get(item, np.nan) for item in items] for row in rows], ndmin=2)
    return fit_bank(matrix, task=task, metric=metric, items=items, digest=next(iter(digests)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """A bank from others' responses.

    Attributes:
        notes: what could be verified, and what could not.
    """

    bank: ItemBank
    notes: tuple[str, ...]


def import_bank(source: Path, experiment: Experiment, task: str, metric: str | None = None) -> Imported:
    """Fit a bank to a response matrix, for the task as an experiment asks it.

    Args:
        source: see `read_responses`.
        experiment: whose task it is; its base's tokenizer and its prompts make the bank's digest.
        task: the task.
        metric: needed where the experiment reads several of this task.

    Raises:
        TaskError: a task or metric that the experiment does not measure, responses that cannot be read, items that the
            task does not have, or logs that were made with other prompts.
        PoolError: the experiment's models cannot be read.
    """
    measured = {m.metric: m for m in experiment.fitness.metrics if m.task == task}
    if not measured:
        names = sorted({m.task for m in experiment.fitness.metrics})
        raise TaskError(f"task {task!r}: expected one that the experiment measures: {names}{near(task, names)}")
    if metric is None and len(measured) > 1:
        raise TaskError(f"task {task!r}: expected one metric of {sorted(measured)}; choose with --metric")
    chosen = measured.get(metric or next(iter(measured)))
    if chosen is None:
        raise TaskError(
            f"task {task!r}: expected a metric that the experiment measures, {sorted(measured)}; got {metric!r}"
        )
    matrix = read_responses(source, task, chosen.metric, chosen.filter)
    runner = _runner(experiment)
    _check_items(source, task, matrix.items, runner.sizes()[task])
    notes = tuple(_notes(source, task, matrix, runner.prompt_hashes(task)))
    digest = runner.digests()[task]
    bank = fit_bank(matrix.responses, task=task, metric=chosen.metric, items=matrix.items, digest=digest)
    return Imported(bank=bank, notes=notes)


def _runner(experiment: Experiment) -> EvalRunner:
    """The tasks as a worker loads them."""
    require_installed("torch", "merge")
    require_installed("lm_eval", "eval")
    from evomerge.workers.candidate import quiet

    with quiet(None):
        from evomerge.engines.runner import EvalRunner
        from evomerge.engines.transformers_engine import TransformersEngine

        engine = TransformersEngine(open_pool(experiment), transformers_config(experiment.engine))
        return EvalRunner(engine, experiment.fitness, experiment.seed)


def _check_items(source: Path, task: str, items: Sequence[int], size: int) -> None:
    foreign = [item for item in items if not 0 <= item < size]
    if foreign:
        raise TaskError(
            f"{source}: expected item ids of task {task!r}, 0 to {size - 1}; got {foreign[:5]}"
            f"{' and others' if len(foreign) > 5 else ''}; number items by the task's documents"
        )


def _notes(source: Path, task: str, matrix: ResponseMatrix, prompts: Sequence[str]) -> Iterator[str]:
    """What is known of the prompts behind the responses.

    Raises:
        TaskError: they are known to be others.
    """
    known = [item for item in matrix.items if item in matrix.prompts] if prompts else []
    other = [item for item in known if matrix.prompts[item] != prompts[item]]
    if other:
        raise TaskError(
            f"{source}: expected the prompts of this experiment; {len(other)} of {len(known)} items of {task!r} were "
            f"asked in others (first: item {other[0]}); log again with the experiment's few_shot, template and seed"
        )
    if known:
        yield f"{len(known)} of {len(matrix.items)} items carry a hash of their prompt, and it is this experiment's"
    if len(known) < len(matrix.items):
        yield (
            f"not verified for {len(matrix.items) - len(known)} items: that they were asked with this experiment's "
            "prompts, which the responses do not tell; if they were not, a run's audit will say so"
        )
    yield "not verified: how answers were generated and filtered, and with which version of lm-eval"


def write_bank(bank: ItemBank, path: Path, *, responses: bool = True) -> None:
    """Write a bank where no file is yet: runs that began with a bank need that very one.

    Args:
        bank: the bank.
        path: the new file.
        responses: keep the responses it was fitted to.

    Raises:
        StoreError: a file that exists, or cannot be written.
    """
    if path.exists():
        raise StoreError(f"{path}: expected a free name; got a file; choose another name, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_bank(bank if responses else replace(bank, responses=None), path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def describe_bank(bank: ItemBank) -> Iterator[tuple[str, str]]:
    """Pairs of a quantity and its value."""
    kind = "Rasch" if bank.dimensions == 1 and np.ptp(bank.slopes) == 0 else f"{bank.dimensions} dimensions"
    low, middle, high = np.quantile(bank.difficulties, [0.0, 0.5, 1.0])
    yield "task", f"{bank.task} ({bank.metric}), digest {bank.digest}"
    yield "items", f"{len(bank.items)}"
    yield "calibrators", f"{bank.calibrators}, {_kept(bank)}"
    yield "model", f"{kind}, {bank.link} link"
    yield "difficulty", f"{low:.2f} to {high:.2f}, median {middle:.2f}"
    yield from _solved(bank)
    order = np.sort(bank.information)[::-1].cumsum()
    half = int(np.searchsorted(order, order[-1] / 2)) + 1
    yield "information", f"{order[-1]:.1f} in all; half of it in {half} of {len(order)} items"


def _kept(bank: ItemBank) -> str:
    if bank.responses is None:
        return "without their responses: a run cannot fit it again"
    share = 100.0 * float(np.mean(~np.isnan(bank.responses)))
    return f"with their responses ({share:.0f} % of all): a run fits it again"


def _solved(bank: ItemBank) -> Iterator[tuple[str, str]]:
    """Items that tell models apart from none."""
    if bank.responses is not None and bank.link == "logistic":
        asked = ~np.isnan(bank.responses)
        answers = np.where(asked, bank.responses, 0.0).sum(axis=0)
        yield "solved by nobody", str(int(np.count_nonzero((answers == 0) & asked.any(axis=0))))
        yield "solved by everybody", str(int(np.count_nonzero((answers == asked.sum(axis=0)) & asked.any(axis=0))))
