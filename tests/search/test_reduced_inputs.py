"""Searches with few items on tasks that give a model of items little to work with: they end, or refuse at the start."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.banks import fit_banks, write_bank
from evomerge.config import Experiment
from evomerge.errors import StoreError, TaskError
from evomerge.fitness.irt import fit_bank, load_bank
from evomerge.fitting import space_of
from evomerge.opening import open_run
from evomerge.outcome import Failed, Job, Outcome, Responses, Scored
from evomerge.reports import Summary, summarize
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor, WorkerInfo

_spec = importlib.util.spec_from_file_location("synthetic_inputs", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


class Worker(synthetic.SyntheticWorker):  # type: ignore[misc]
    """Answers what `value` says; fails the first `failing` candidates."""

    def __init__(self, value: Any = None, size: int = synthetic.SIZE, failing: int = 0) -> None:
        super().__init__()
        self._value, self._size, self._failing = value, size, failing

    def info(self) -> WorkerInfo:
        return WorkerInfo(
            sizes=dict.fromkeys(synthetic.TASKS, self._size),
            digests=dict.fromkeys(synthetic.TASKS, "items"),
            pool_digest="pool",
        )

    def run(self, job: Job) -> Outcome:
        if job.candidate < self._failing:
            return Failed(
                candidate=job.candidate, phase=job.phase, round=job.round, stage="evaluate", reason="no answer"
            )
        if self._value is None:
            scored: Outcome = super().run(job)
            return scored
        responses = tuple(
            Responses(task=task, metric="acc", items=ids, values=tuple(self._value(job.candidate, i) for i in ids))
            for task, ids in job.items.tasks
        )
        return Scored(candidate=job.candidate, phase=job.phase, round=job.round, responses=responses)


def config(search: int = 12, confirm: int = 20, **estimator: Any) -> Experiment:
    plain = synthetic.experiment().model_dump(mode="json")["fitness"]
    fitness = {
        "items": {"search": search, "confirm": confirm},
        "estimator": {"kind": "irt", "promote": 1} | estimator,
    }
    made: Experiment = synthetic.experiment(fitness=plain | fitness)
    return made


def drive(folder: Path, config: Experiment, worker: Worker) -> Summary:
    lineup, executor = synthetic.LINEUP, SerialExecutor(lambda: worker)
    with open_run(folder, config, lineup, space_of(config, lineup)) as store:
        for _ in Search(config, lineup, store=store, executor=executor, info=executor.start()).run(Stop()):
            pass
        return summarize(store)


def finite(summary: Summary) -> bool:
    found = [e.estimated for e in summary.entries.values() if e.estimated is not None]
    assert found
    return all(np.isfinite([m.low, m.mean, m.high]).all() for scores in found for m in scores.each)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (lambda c, i: 1.0, 0.9, 1.0),
        (lambda c, i: 0.0, 0.0, 0.1),
        (lambda c, i: 40.0 + c + i % 7, 40.0, 80.0),
        (lambda c, i: -3.5, -3.51, -3.49),
        (lambda c, i: float(c >= 4), 0.0, 1.0),
    ],
    ids=["all right", "all wrong", "not in [0, 1]", "constant", "anchors all wrong"],
)
def test_odd_answers_give_finite_scores(value: Any, low: float, high: float, tmp_path: Path) -> None:
    summary = drive(tmp_path / "run", config(), Worker(value))
    assert summary.state == "finished"
    assert finite(summary)
    means = [m.mean for e in summary.entries.values() if e.estimated is not None for m in e.estimated.each]
    assert low - 1e-9 <= min(means) <= max(means) <= high + 1e-9


def test_all_anchors_failing_leaves_a_search_among_candidates(tmp_path: Path) -> None:
    summary = drive(tmp_path / "run", config(), Worker(failing=4))
    assert finite(summary)
    assert sum(e.estimated is not None for e in summary.entries.values()) == 18
    assert summary.knee is not None


def test_tasks_of_five_items_are_asked_in_full(tmp_path: Path) -> None:
    summary = drive(tmp_path / "run", config(search=3, confirm=2), Worker(size=5))
    assert finite(summary)
    assert {e.estimated.mean.items for e in summary.entries.values() if e.estimated} == {6}


def test_a_confirmation_that_leaves_few_items_leaves_a_small_universe(tmp_path: Path) -> None:
    summary = drive(tmp_path / "run", config(search=4, confirm=53), Worker())
    assert finite(summary)
    assert {e.estimated.mean.items for e in summary.entries.values() if e.estimated} == {8, 14}


def test_a_bank_of_three_models_serves_and_belongs_to_its_task(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="run further"):
        fit_banks([_begun(tmp_path / "empty")])
    drive(tmp_path / "first", config(), Worker())
    banks = fit_banks([tmp_path / "first"])
    assert [(bank.task, bank.calibrators) for bank in banks] == [("alpha", 22), ("beta", 22)]
    assert banks[0].responses is not None
    three, path = _of_three(banks[0]), tmp_path / "alpha.npz"
    write_bank(three, path)
    with_bank = config(banks=[str(path)])
    summary = drive(tmp_path / "second", with_bank, Worker())
    assert finite(summary)
    assert load_bank(path).calibrators == 3
    drive(tmp_path / "second", with_bank, Worker())
    path.unlink()
    write_bank(banks[0], path)
    with pytest.raises(StoreError, match="item banks"):
        drive(tmp_path / "second", with_bank, Worker())


def _of_three(bank: Any) -> Any:
    return fit_bank(bank.responses[:3], task=bank.task, items=bank.items, digest=bank.digest)


def _begun(folder: Path) -> Path:
    experiment = config()
    with open_run(folder, experiment, synthetic.LINEUP, space_of(experiment, synthetic.LINEUP)):
        return folder


def test_a_bank_of_another_task_is_refused_at_the_start(tmp_path: Path) -> None:
    drive(tmp_path / "first", config(), Worker())
    bank = fit_banks([tmp_path / "first"], "alpha")[0]
    for wrong, match in ((replace(bank, task="gamma"), "gamma"), (replace(bank, digest="other"), "prompts")):
        path = tmp_path / f"{match}.npz"
        write_bank(wrong, path)
        with pytest.raises(TaskError, match=match):
            drive(tmp_path / match, config(banks=[str(path)]), Worker())


def test_runs_that_asked_in_other_words_are_not_mixed(tmp_path: Path) -> None:
    class Other(Worker):
        def info(self) -> WorkerInfo:
            found = super().info()
            return WorkerInfo(sizes=found.sizes, digests=dict.fromkeys(synthetic.TASKS, "others"), pool_digest="pool")

    drive(tmp_path / "one", config(), Worker())
    drive(tmp_path / "two", config(), Other())
    with pytest.raises(TaskError, match="same words"):
        fit_banks([tmp_path / "one", tmp_path / "two"])


def test_a_budget_of_items_below_the_first_generation_is_refused(tmp_path: Path) -> None:
    least = 2 * (4 * 40 + 6 * 12 + 1 * 28)
    small = config().model_copy(update={"budget": config().budget.model_copy(update={"items": least - 1})})
    with pytest.raises(TaskError, match=f"at least {least}"):
        drive(tmp_path / "run", small, Worker())


def test_the_audit_is_on_record_and_shown(tmp_path: Path) -> None:
    summary = drive(tmp_path / "run", config(), Worker())
    assert "alpha z " in summary.cost.audit
    assert "of 3 generations" in summary.cost.audit
    with RunStore.read(tmp_path / "run") as store:
        assert [*store.notes("audit")] == ["0", "1", "2"]
