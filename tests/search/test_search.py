"""The loop: whatever goes wrong on the way, the run ends where the undisturbed one ends."""

from __future__ import annotations

import importlib.util
import math
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.config import Experiment
from evomerge.errors import EvomergeError, RunError, StoreError
from evomerge.fitting import space_of
from evomerge.opening import Lineup, anchors, open_run
from evomerge.outcome import Failed, Job, Outcome
from evomerge.reports import summarize
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import Executor, Fault, FaultyExecutor, SerialExecutor, WorkerInfo

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
LINEUP = synthetic.LINEUP


class Killed(BaseException):
    """The end of the driver, wherever it is."""


@contextmanager
def store_of(folder: Path, config: Experiment) -> Iterator[RunStore]:
    with open_run(folder, config, LINEUP, space_of(config, LINEUP)) as store:
        yield store


def serial(before: Callable[[Job], None] = lambda job: None) -> SerialExecutor:
    return SerialExecutor(lambda: synthetic.SyntheticWorker(before))


def drive(
    folder: Path, config: Experiment, executor: Executor, stop: Stop | None = None, steps: int | None = None
) -> int:
    """Run, for some steps at most; how many steps were taken."""
    taken = 0
    with store_of(folder, config) as store:
        search = Search(config, LINEUP, store=store, executor=executor, info=executor.start())
        for _ in search.run(stop or Stop()):
            taken += 1
            if taken == steps:
                raise Killed
    return taken


def archive(folder: Path) -> bytes:
    with RunStore.read(folder) as store:
        return store.archive()


@pytest.fixture(scope="module", params=["nsga2", "cma", "random"])
def config(request: pytest.FixtureRequest) -> Experiment:
    made: Experiment = synthetic.experiment(algorithm={"kind": request.param, "population": 6})
    return made


@pytest.fixture(scope="module")
def whole(config: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    drive(folder, config, serial())
    return folder


def test_a_run_scores_anchors_generations_and_confirms_on_unseen_items(whole: Path, config: Experiment) -> None:
    with RunStore.read(whole) as store:
        candidates, results = store.candidates(), store.results()
        assert store.meta("state") == "finished"
    assert [c.label for c in candidates if c.kind == "anchor"] == list(anchors(LINEUP)) == ["base", "a", "b", "uniform"]
    assert Counter(c.generation for c in candidates if c.kind == "search") == {0: 6, 1: 6, 2: 6}
    assert sum(result.phase == "search" for result in results) == config.budget.evaluations
    seen = {
        phase: {(r.task, i) for x in results if x.phase == phase for r in x.responses for i in r.items}
        for phase in ("search", "confirm")
    }
    assert len(seen["confirm"]) == 2 * 20
    assert not seen["search"] & seen["confirm"]
    confirmed = {result.candidate for result in results if result.phase == "confirm"}
    assert {c.id for c in candidates if c.kind == "anchor"} < confirmed
    assert 4 < len(confirmed) <= 4 + 3
    assert {len(r.items) for x in results if x.phase == "confirm" for r in x.responses} == {20}


def test_what_the_algorithm_tells_of_itself_is_kept_and_survives_a_kill(
    whole: Path, config: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        drive(tmp_path / "run", config, serial(), steps=14)
    drive(tmp_path / "run", config, serial())
    told = []
    for folder in (whole, tmp_path / "run"):
        with RunStore.read(folder) as store:
            told.append([generation.state for generation in summarize(store).generations])
    assert told[0] == told[1]
    expected = {"sigma", "axis ratio", "restarts"} if config.algorithm.kind == "cma" else set()
    assert [set(state) for state in told[0]] == [expected] * 3


def test_items_are_shared_in_a_generation_and_fresh_in_the_next(whole: Path) -> None:
    with RunStore.read(whole) as store:
        generation = {c.id: max(c.generation, 0) for c in store.candidates()}
        digests: dict[int, set[str]] = {}
        for result in store.results("search"):
            digests.setdefault(generation[result.candidate], set()).add(result.items_digest)
    assert [len(found) for found in digests.values()] == [1, 1, 1]
    assert len(set.union(*digests.values())) == 3


def test_driver_killed_at_every_step_and_resumed_ends_the_same(whole: Path, config: Experiment, tmp_path: Path) -> None:
    for steps in range(1, 40):
        folder = tmp_path / str(steps)
        try:
            drive(folder, config, serial(), steps=steps)
            break
        except Killed:
            drive(folder, config, serial())
        assert archive(folder) == archive(whole), steps
    assert steps > 20


def test_driver_killed_in_every_job_and_resumed_ends_the_same(whole: Path, config: Experiment, tmp_path: Path) -> None:
    folder, jobs = tmp_path / "run", Counter[tuple[int, str]]()

    def dies_once_per_job(job: Job) -> None:
        jobs[job.candidate, job.phase] += 1
        if jobs[job.candidate, job.phase] == 1:
            raise Killed

    for _ in range(100):
        try:
            drive(folder, config, serial(dies_once_per_job))
            break
        except Killed:
            continue
    assert archive(folder) == archive(whole)
    assert set(jobs.values()) == {2}


FAULTS = st.sampled_from(["hang", "lose", "die", "late", "repeat", "slow"])


@settings(max_examples=25)
@given(
    script=st.dictionaries(st.integers(0, 24), st.tuples(FAULTS, st.floats(0, 90)), max_size=12),
    workers=st.integers(1, 4),
)
def test_lost_workers_late_doubled_and_reordered_replies_change_nothing(
    whole: Path, config: Experiment, script: dict[int, tuple[Any, float]], workers: int
) -> None:
    def fault(job: Job) -> Fault | None:
        kind, seconds = script.get(job.candidate, (None, 0.0))
        return Fault(kind, seconds) if kind and job.attempt == 1 else None

    with tempfile.TemporaryDirectory() as folder:
        executor = FaultyExecutor(synthetic.SyntheticWorker, script=fault, workers=workers)
        drive(Path(folder), config, executor)
        assert archive(Path(folder)) == archive(whole)


def test_a_stop_drains_and_the_run_goes_on_later(whole: Path, config: Experiment, tmp_path: Path) -> None:
    folder, stop = tmp_path / "run", Stop()

    def after_eight(job: Job) -> None:
        stop.requested = job.candidate >= 8

    assert drive(folder, config, serial(after_eight), stop) < 20
    with RunStore.read(folder) as store:
        assert store.meta("state") == "stopped"
        assert {attempt.status for attempt in store.attempts()} == {"scored"}
    drive(folder, config, serial())
    assert archive(folder) == archive(whole)


def test_a_candidate_that_costs_two_workers_is_failed_and_the_run_goes_on(config: Experiment, tmp_path: Path) -> None:
    executor = FaultyExecutor(
        synthetic.SyntheticWorker, script=lambda job: Fault("die") if job.candidate == 7 else None, workers=2
    )
    drive(tmp_path, config, executor)
    with RunStore.read(tmp_path) as store:
        assert [(f.candidate, f.phase) for f in store.failures()] == [(7, "search")]
        assert sum(a.candidate == 7 for a in store.attempts()) == 2
        assert store.meta("state") == "finished"
        assert 7 not in {result.candidate for result in store.results()}


class Broken(synthetic.SyntheticWorker):  # type: ignore[misc]
    def run(self, job: Job) -> Failed:
        return Failed(candidate=job.candidate, phase=job.phase, stage="evaluate", reason="the task is broken")


def test_a_run_in_which_everything_fails_stops_with_the_reason_and_can_be_repaired(
    whole: Path, config: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="the task is broken"):
        drive(tmp_path, config, SerialExecutor(Broken))
    drive(tmp_path, config, serial())
    assert archive(tmp_path) == archive(whole)


class Liar(synthetic.SyntheticWorker):  # type: ignore[misc]
    def run(self, job: Job) -> Outcome:
        outcome: Outcome = super().run(job)
        if job.candidate != 6 or isinstance(outcome, Failed):
            return outcome
        first, *others = outcome.responses
        return replace(outcome, responses=(replace(first, values=(math.nan, *first.values[1:])), *others))


def test_a_worker_that_breaks_its_contract_fails_its_candidate_only(config: Experiment, tmp_path: Path) -> None:
    drive(tmp_path, config, SerialExecutor(Liar))
    with RunStore.read(tmp_path) as store:
        assert [(failure.candidate, failure.stage) for failure in store.failures()] == [(6, "evaluate")]
        assert store.meta("state") == "finished"


class Stuck(synthetic.SyntheticWorker):  # type: ignore[misc]
    """Answers the round after the one that it was asked."""

    def run(self, job: Job) -> Outcome:
        outcome: Outcome = super().run(job)
        return replace(outcome, round=job.round + 1) if job.candidate == 6 else outcome


def test_a_worker_that_answers_another_round_fails_its_candidate_and_is_not_waited_for(
    config: Experiment, tmp_path: Path
) -> None:
    drive(tmp_path, config, SerialExecutor(Stuck))
    with RunStore.read(tmp_path) as store:
        assert [(failure.candidate, failure.stage) for failure in store.failures()] == [(6, "worker")]
        assert store.meta("state") == "finished"


def one_recipe_for_all() -> tuple[Experiment, Lineup]:
    """A space below what a recipe keeps."""
    config = synthetic.experiment(
        pool={"base": "/nowhere/base", "experts": {"a": "/nowhere/a"}},
        budget={"evaluations": 3 + 6},
        space={
            "kind": "parameter",
            "operator": {"name": "task_arithmetic"},
            "knots": 1,
            "genes": {"weight": {"low": 1, "high": 1.0000004}},
        },
    )
    return config, Lineup(base="base", experts=("a",), layers=4, dtype="float32", digest="pool")


def test_equal_recipes_are_scored_once(tmp_path: Path) -> None:
    config, lineup = one_recipe_for_all()
    with open_run(tmp_path, config, lineup, space_of(config, lineup)) as store:
        executor = serial()
        list(Search(config, lineup, store=store, executor=executor, info=executor.start()).run(Stop()))
        search = store.results("search")
        assert len(search) == 9
        assert sum(result.cached_from is not None for result in search) == 5
        assert len(store.results("confirm")) == 4


def test_equal_recipes_fail_together_wherever_the_driver_dies(tmp_path: Path) -> None:
    config, lineup = one_recipe_for_all()

    class Picky(synthetic.SyntheticWorker):  # type: ignore[misc]
        def run(self, job: Job) -> Outcome:
            if job.recipe.operator == "linear":
                outcome: Outcome = super().run(job)
                return outcome
            return Failed(candidate=job.candidate, phase=job.phase, stage="materialize", reason="no")

    archives = set()
    for steps in range(1, 12):
        folder = tmp_path / str(steps)
        for limit in (steps, 99):
            executor = SerialExecutor(Picky)
            with open_run(folder, config, lineup, space_of(config, lineup)) as store:
                search = Search(config, lineup, store=store, executor=executor, info=executor.start()).run(Stop())
                list(islice(search, limit))
                search.close()
        with RunStore.read(folder) as store:
            assert [failure.stage for failure in store.failures()] == ["materialize"] * 6
        archives.add(archive(folder))
    assert len(archives) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 1}, r"\$\.seed: the run has 0, now it is 1"),
        ({"algorithm": {"kind": "random", "population": 7}}, r"\$\.algorithm\.population"),
        ({"fitness": {"search": 13}}, r"\$\.fitness\.items\.search: the run has 12, now it is 13"),
    ],
)
def test_a_changed_experiment_is_refused_with_the_difference(
    whole: Path, config: Experiment, changes: dict[str, Any], expected: str
) -> None:
    before = archive(whole)
    data = config.model_dump()
    if "fitness" in changes:
        data["fitness"]["items"] |= changes["fitness"]
    else:
        data |= changes
    with pytest.raises(StoreError, match=expected):
        drive(whole, Experiment.model_validate(data), serial())
    assert archive(whole) == before


def test_changed_items_and_changed_models_are_refused(whole: Path, config: Experiment) -> None:
    class Other(synthetic.SyntheticWorker):  # type: ignore[misc]
        def info(self) -> WorkerInfo:
            info: WorkerInfo = replace(super().info(), digests={"alpha": "items", "beta": "others"})
            return info

    with pytest.raises(StoreError, match=r"workers\.tasks\.beta\.digest: the run has 'items', now it is 'others'"):
        drive(whole, config, SerialExecutor(Other))
    lineup = synthetic.Lineup(base="base", experts=("a", "b"), layers=4, dtype="float32", digest="other")
    with pytest.raises(StoreError, match="model contents: the run has 'pool', now it is 'other'"):
        open_run(whole, config, lineup, space_of(config, LINEUP))


def test_a_larger_budget_goes_on_from_the_end(config: Experiment, tmp_path: Path) -> None:
    drive(tmp_path, config, serial())
    larger = config.model_copy(update={"budget": config.budget.model_copy(update={"evaluations": 4 + 5 * 6})})
    drive(tmp_path, larger, serial())
    with RunStore.read(tmp_path) as store:
        assert Counter(c.generation for c in store.candidates() if c.kind == "search") == dict.fromkeys(range(5), 6)
        assert len(store.results("search")) == 4 + 5 * 6


def test_a_smaller_budget_than_what_is_recorded_is_refused(whole: Path, config: Experiment) -> None:
    smaller = config.model_copy(update={"budget": config.budget.model_copy(update={"evaluations": 4 + 6})})
    with pytest.raises(StoreError, match="22 candidates are recorded already"):
        drive(whole, smaller, serial())


def test_the_record_holds_the_newest_budget(config: Experiment, tmp_path: Path) -> None:
    drive(tmp_path, config, serial(), steps=None)
    larger = config.model_copy(update={"budget": config.budget.model_copy(update={"evaluations": 4 + 4 * 6})})
    with pytest.raises(Killed):
        drive(tmp_path, larger, serial(), steps=2)
    with RunStore.read(tmp_path) as store:
        assert store.experiment["budget"]["evaluations"] == 28
        assert Experiment.model_validate(store.experiment) == larger


def test_workers_on_another_device_or_pool_are_refused(whole: Path, config: Experiment) -> None:
    class Elsewhere(synthetic.SyntheticWorker):  # type: ignore[misc]
        def info(self) -> WorkerInfo:
            info: WorkerInfo = replace(super().info(), device="cuda")
            return info

    class Mixed(synthetic.SyntheticWorker):  # type: ignore[misc]
        def info(self) -> WorkerInfo:
            info: WorkerInfo = replace(super().info(), pool_digest="other")
            return info

    with pytest.raises(StoreError, match=r"workers\.device: the run has 'cpu', now it is 'cuda'"):
        drive(whole, config, SerialExecutor(Elsewhere))
    with pytest.raises(StoreError, match="model contents: the run has 'pool', now it is 'other'"):
        drive(whole, config, SerialExecutor(Mixed))


def test_replay_reproduces_every_generation_and_notices_tampering(whole: Path, config: Experiment) -> None:
    info = synthetic.SyntheticWorker().info()
    with RunStore.read(whole) as store:
        assert Search(config, LINEUP, store=store, executor=None, info=info).replay() == 3
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "run"
        copy.mkdir()
        for file in whole.iterdir():
            if file.is_file():
                (copy / file.name).write_bytes(file.read_bytes())
        with sqlite3.connect(copy / "run.db") as db:
            (blob,) = db.execute("SELECT genome FROM candidate WHERE generation = 1 AND slot = 0").fetchone()
            (first,) = struct.unpack("<d", blob[:8])
            other = struct.pack("<d", first / 2 + 0.1) + blob[8:]
            db.execute("UPDATE candidate SET genome = ? WHERE generation = 1 AND slot = 0", [other])
        db.close()
        with RunStore.read(copy) as store, pytest.raises(StoreError, match="other genes"):
            Search(config, LINEUP, store=store, executor=None, info=info).replay()


def test_items_too_few_to_split_are_refused_before_anything_runs(tmp_path: Path) -> None:
    config = synthetic.experiment()
    fitness = config.fitness.model_copy(update={"items": config.fitness.items.model_copy(update={"confirm": 55})})
    config = config.model_copy(update={"fitness": fitness})
    with pytest.raises(EvomergeError, match="alpha"):
        drive(tmp_path, config, serial())
    with RunStore.read(tmp_path) as store:
        assert not store.candidates()
