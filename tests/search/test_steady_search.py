"""The search without generations: what is asked follows from the order of completion, whatever happens on the way."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evomerge.config import AlgorithmConfig, Experiment
from evomerge.errors import RunError, StoreError
from evomerge.fitting import space_of
from evomerge.guard import warnings_of
from evomerge.opening import is_complete, open_run
from evomerge.outcome import Failed, Job, Outcome, Scored
from evomerge.population import PopulationManager
from evomerge.replay import replay_genomes
from evomerge.rng import stream
from evomerge.runs import RunStore
from evomerge.search import Progress, Search
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor, WorkerInfo
from evomerge.workers.base import run_safely

_spec = importlib.util.spec_from_file_location("synthetic_steady", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
LINEUP, archive = synthetic.LINEUP, synthetic.archive

FLYING, POPULATION, EVALUATIONS = 4, 6, 4 + 20
SPACES: dict[str, Any] = {
    "random": synthetic.experiment().space.model_dump(),
    "grid": synthetic.experiment().space.model_dump()
    | {"knots": 1, "genes": {"weight": {"low": 0, "high": 1, "edges": "first"}}},
    "m2n2": {"kind": "soup"},
    "graft": {"kind": "routing"},
}
KEYS: dict[str, Any] = {"grid": {"levels": 4}, "m2n2": {"mutation": 0.1}}
STEADY = [kind for kind, member in AlgorithmConfig.kinds.items() if getattr(member, "steady", False)]


class Killed(BaseException):
    """The end of a driver, which nothing in it may catch."""


class Scripted:
    """Completes the jobs that it has in an order that is a function of which those are.

    Args:
        worker: does the jobs.
        seed: of the order; None: as they were submitted.
        capacity: jobs that it takes.
        most: outcomes of one call.
    """

    def __init__(self, worker: Any, seed: int | None = None, *, capacity: int = FLYING + 4, most: int = 1) -> None:
        self._worker, self._seed, self._most = worker(), seed, most
        self._jobs: list[Job] = []
        self.capacity = capacity
        self.flying = 0

    def start(self) -> WorkerInfo:
        info: WorkerInfo = self._worker.info()
        return info

    def submit(self, job: Job) -> None:
        self._jobs.append(job)
        self.flying = max(self.flying, sum(job.candidate > 3 for job in self._jobs))

    def wait(self, timeout: float) -> list[Outcome]:
        if self._seed is not None:
            self._jobs.sort(key=lambda job: stream(self._seed or 0, "order", job.candidate, job.round).random())
        done, self._jobs = self._jobs[: self._most], self._jobs[self._most :]
        return [run_safely(self._worker, job) for job in done]

    def close(self) -> None:
        self._jobs = []


def experiment(kind: str = "random", **changes: Any) -> Experiment:
    algorithm = {"kind": kind, "population": POPULATION, "in_flight": FLYING, **KEYS.get(kind, {})}
    plain = synthetic.experiment()
    fitness = plain.fitness.model_dump(mode="json") | changes.pop("fitness", {})
    data = {"space": SPACES[kind], "budget": {"evaluations": EVALUATIONS}, "algorithm": algorithm, "fitness": fitness}
    made: Experiment = synthetic.experiment(**(data | changes))
    return made


def drive(folder: Path, config: Experiment, executor: Any, stop: Stop | None = None) -> list[Progress]:
    with open_run(folder, config, LINEUP, space_of(config, LINEUP)) as store:
        search = Search(config, LINEUP, store=store, executor=executor, info=executor.start())
        return list(search.run(stop or Stop()))


@contextmanager
def dies_after(commits: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The driver dies instead of the transaction after so many."""
    left, transaction = iter(range(commits)), RunStore._transaction

    @contextmanager
    def mortal(self: RunStore) -> Iterator[Any]:
        if not self._db.in_transaction and next(left, None) is None:
            raise Killed
        with transaction(self) as db:
            yield db

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "_transaction", mortal)
        yield


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("kind", STEADY)
def test_a_run_that_dies_again_and_again_ends_where_an_undisturbed_one_does(
    kind: str, seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment(kind)
    drive(tmp_path / "whole", config, Scripted(Flaky, seed))
    lives = (13, 17, 11, 19, *(14 for _ in range(99)))
    died = 0
    for commits in lives:
        try:
            with dies_after(commits, monkeypatch):
                drive(tmp_path / "killed", config, Scripted(Flaky, seed))
            break
        except Killed:
            died += 1
    assert died > 3
    assert archive(tmp_path / "killed") == archive(tmp_path / "whole")
    assert replay_genomes(tmp_path / "killed") == (16 if kind == "grid" else 20) // POPULATION


class Flaky(synthetic.SyntheticWorker):  # type: ignore[misc]
    """Fails on some candidates."""

    def run(self, job: Job) -> Outcome:
        if job.candidate in (6, 7, 13):
            return Failed(candidate=job.candidate, phase=job.phase, round=job.round, stage="evaluate", reason="no")
        outcome: Outcome = super().run(job)
        return outcome


def test_a_driver_that_dies_between_any_two_transactions_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, seed = experiment("m2n2", budget={"evaluations": 4 + 8}), 5
    drive(tmp_path / "whole", config, Scripted(Flaky, seed, most=2))
    for commits in count(3):
        folder = tmp_path / str(commits)
        try:
            with dies_after(commits, monkeypatch):
                drive(folder, config, Scripted(Flaky, seed, most=2))
            break
        except Killed:
            drive(folder, config, Scripted(Flaky, seed, most=2))
        assert archive(folder) == archive(tmp_path / "whole"), commits
    assert commits > 25


@pytest.mark.parametrize("kind", STEADY)
def test_one_worker_ends_where_it_would_undisturbed(kind: str, tmp_path: Path) -> None:
    config = experiment(kind)
    drive(tmp_path / "whole", config, SerialExecutor(synthetic.SyntheticWorker))

    def worker(jobs: int) -> Callable[[], Any]:
        left = iter(range(jobs))

        def before(_: Job) -> None:
            if next(left, None) is None:
                raise Killed

        return lambda: synthetic.SyntheticWorker(before)

    for jobs in count(1):
        try:
            drive(tmp_path / "killed", config, SerialExecutor(worker(jobs)))
            break
        except Killed:
            continue
    assert archive(tmp_path / "killed") == archive(tmp_path / "whole")


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), most=st.integers(1, 5), capacity=st.integers(1, 9), kind=st.sampled_from(STEADY))
def test_every_candidate_is_told_once_and_no_more_are_in_work(seed: int, most: int, capacity: int, kind: str) -> None:
    told: Counter[Any] = Counter()
    tell_one = PopulationManager.tell_one

    def counted(self: PopulationManager, genome: Any, *rest: Any) -> None:
        told[genome.values] += 1
        tell_one(self, genome, *rest)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(PopulationManager, "tell_one", counted)
        executor = Scripted(Flaky, seed, capacity=capacity, most=most)
        steps = drive(Path(folder), experiment(kind), executor)
        with RunStore.read(Path(folder)) as store:
            asked = Counter(c.genome for c in store.candidates() if c.kind == "search")
            settled = Counter(store.order("search"))
            numbers = [(c.generation, c.slot) for c in store.candidates() if c.kind == "search"]
    assert told == asked
    assert asked.total() == (4 * 4 if kind == "grid" else EVALUATIONS - 4)
    assert set(settled.values()) == {1}
    assert numbers == [divmod(number, POPULATION) for number in range(asked.total())]
    assert executor.flying <= FLYING
    assert max(step.in_flight or 0 for step in steps) < FLYING + 1
    searched = [step for step in steps if step.phase == "search"]
    assert [step.done for step in searched] == list(range(1, 5 + asked.total()))


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), most=st.integers(2, 5))
def test_of_the_order_of_completion_only(seed: int, most: int) -> None:
    """How many outcomes come at once does not matter, nor how many workers there are."""
    config = experiment("m2n2", seed=seed, space={"kind": "soup", "knots": 3})
    with tempfile.TemporaryDirectory() as folder:
        orders = set()
        for name, capacity, at_once in (("one", 1, 1), ("many", 99, most)):
            drive(Path(folder, name), config, Scripted(Flaky, None, capacity=capacity, most=at_once))
            with RunStore.read(Path(folder, name)) as store:
                orders.add(tuple(store.order("search")))
        assume(len(orders) == 1)  # a child with a known recipe is settled at once, between others
        assert archive(Path(folder, "one")) == archive(Path(folder, "many"))


def test_draws_are_shared_by_blocks_and_anchors_to_compare_with_answer_each(tmp_path: Path) -> None:
    kept = {"name": "kept", "task": "beta", "at_least": -0.2, "relative_to": "uniform"}
    config = experiment("m2n2", fitness={"constraints": [kept]})
    drive(tmp_path / "run", config, Scripted(synthetic.SyntheticWorker, 2, most=3))
    with RunStore.read(tmp_path / "run") as store:
        blocks = {c.id: c.generation for c in store.candidates()}
        digests: dict[int, set[str]] = {}
        for result in store.results("search"):
            block = result.round if blocks[result.candidate] < 0 else blocks[result.candidate]
            digests.setdefault(block, set()).add(result.items_digest)
        rounds = [result.round for result in store.results("search") if result.candidate == 3]
    assert sorted(rounds) == sorted(digests) == [0, 1, 2, 3]
    assert all(len(found) == 1 for found in digests.values())
    assert len(set.union(*digests.values())) == 4


@pytest.mark.parametrize("seed", [None, 3])
def test_a_constrained_run_that_dies_ends_the_same(
    seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"name": "kept", "task": "beta", "at_least": -0.2, "relative_to": "uniform"}
    config = experiment("m2n2", fitness={"constraints": [kept]})
    drive(tmp_path / "whole", config, Scripted(Flaky, seed))
    for commits in (15, 21, 26, 18, 999):
        try:
            with dies_after(commits, monkeypatch):
                drive(tmp_path / "killed", config, Scripted(Flaky, seed))
        except Killed:
            continue
    assert archive(tmp_path / "killed") == archive(tmp_path / "whole")


@pytest.mark.parametrize("kind", STEADY)
def test_a_stop_drains_and_the_run_goes_on_later(kind: str, tmp_path: Path) -> None:
    stop, config = Stop(), experiment(kind)

    class Stops(Flaky):
        def run(self, job: Job) -> Outcome:
            stop.requested = job.candidate >= 11
            return super().run(job)

    drive(tmp_path / "whole", config, SerialExecutor(Flaky))
    drive(tmp_path / "run", config, SerialExecutor(Stops), stop)
    with RunStore.read(tmp_path / "run") as store:
        assert store.meta("state") == "stopped"
        assert {attempt.status for attempt in store.attempts()} == {"scored", "failed"}
    drive(tmp_path / "run", config, SerialExecutor(Flaky))
    assert archive(tmp_path / "run") == archive(tmp_path / "whole")


def test_budgets_are_kept_and_larger_ones_go_on(tmp_path: Path) -> None:
    each, anchors = 2 * 12, 4 * 2 * 12

    class Talks(synthetic.SyntheticWorker):  # type: ignore[misc]
        def run(self, job: Job) -> Outcome:
            done: Scored = super().run(job)
            return replace(done, tokens={"alpha": 60, "beta": 40})

    def asked(**budget: int) -> int:
        config = experiment("m2n2", budget={"evaluations": 4 + 30} | budget)
        drive(tmp_path / "run", config, Scripted(Talks, 7))
        with RunStore.read(tmp_path / "run") as store:
            assert is_complete(store, config)
            return sum(c.kind == "search" for c in store.candidates())

    assert asked(items=anchors + 7 * each) == 7
    assert asked(items=anchors + 9 * each + 1, tokens=10**6) == 9
    assert asked(tokens=400 + 14 * 100 + 50) == 14
    assert asked() == 30
    with RunStore.read(tmp_path / "run") as store:
        assert set(Counter(store.order("search")).values()) == {1}
        larger = experiment("m2n2", budget={"evaluations": 4 + 31})
        assert not is_complete(store, larger)
    assert replay_genomes(tmp_path / "run") == 30 // POPULATION


def test_a_run_in_which_everything_fails_stops_with_the_reason_and_can_be_repaired(tmp_path: Path) -> None:
    class Broken(synthetic.SyntheticWorker):  # type: ignore[misc]
        def run(self, job: Job) -> Failed:
            return Failed(candidate=job.candidate, phase=job.phase, stage="evaluate", reason="the task is broken")

    config = experiment("m2n2")
    for seed in (None, 1, 2):
        with pytest.raises(RunError, match="the task is broken"):
            drive(tmp_path / "run", config, Scripted(Broken, seed))
    for name in ("run", "whole"):
        drive(tmp_path / name, config, Scripted(synthetic.SyntheticWorker))
    assert archive(tmp_path / "run") == archive(tmp_path / "whole")


def test_parents_are_recorded(tmp_path: Path) -> None:
    drive(tmp_path, experiment("m2n2"), Scripted(synthetic.SyntheticWorker, 4))
    with RunStore.read(tmp_path) as store:
        lineage = json.loads(store.meta("lineage") or "{}")
        order = store.order("search")
        bred = [c for c in store.candidates() if c.kind == "search"]
    assert len(lineage) > len(bred) // 2
    for child in (c for c in bred if str(c.id) in lineage):
        told = child.id - 4 - FLYING + 1  # this many were told when it was asked for
        known = [number for number in order if number > 3][:told]
        assert set(lineage[str(child.id)]["parents"]) <= {*known, *(c.id for c in bred[:4])}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"algorithm": {"kind": "cma", "in_flight": 4}}, "in_flight: cma learns from whole generations"),
        ({"algorithm": {"kind": "random", "in_flight": 0}}, "greater than or equal to 1"),
        ({"fitness": {"race": {"kind": "open"}}}, "a race is held among the candidates of a generation"),
        ({"fitness": {"estimator": {"kind": "irt"}}}, "the estimator irt learns about items from whole generations"),
    ],
)
def test_what_needs_generations_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        experiment(**changes)


def test_stages_of_a_refined_search_are_generations() -> None:
    stages = [
        {"knots": 1, "evaluations": 8, "algorithm": {"kind": "random", "population": 4, "in_flight": 2}},
        {"algorithm": {"kind": "random", "population": 4}},
    ]
    with pytest.raises(ValidationError, match="leave in_flight out"):
        experiment(algorithm={"kind": "refined", "stages": stages})


def test_a_change_of_how_many_are_in_work_is_refused(tmp_path: Path) -> None:
    drive(tmp_path, experiment(), Scripted(synthetic.SyntheticWorker))
    other = experiment(algorithm={"kind": "random", "population": POPULATION, "in_flight": FLYING + 1})
    with pytest.raises(StoreError, match=r"\$\.algorithm\.in_flight: the run has 4, now it is 5"):
        drive(tmp_path, other, Scripted(synthetic.SyntheticWorker))


def test_workers_that_would_be_idle_are_warned_of() -> None:
    many = experiment(executor={"kind": "ray", "workers": FLYING + 1})
    assert "keep no more workers busy" in " ".join(warnings_of(many))
    assert not warnings_of(experiment(executor={"kind": "ray", "workers": FLYING}))
