"""Racing and chosen items in the loop: whatever interrupts a run, it ends where the undisturbed one ends."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from evomerge.config import Experiment
from evomerge.opening import is_complete
from evomerge.outcome import Failed, Job, Outcome
from evomerge.reports import summarize
from evomerge.runs import RunStore
from evomerge.search import Search

_spec = importlib.util.spec_from_file_location("synthetic_reduced", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
drive, archive = synthetic.drive, synthetic.archive

IRT = {"estimator": {"kind": "irt", "promote": 1}, "race": {"rounds": 2}}
HALVING = {"race": {"kind": "halving", "rounds": 3}}


def reduced(fitness: dict[str, Any], **changes: Any) -> Experiment:
    plain = synthetic.experiment().model_dump(mode="json")
    made: Experiment = synthetic.experiment(fitness=plain["fitness"] | fitness, **changes)
    return made


@pytest.fixture(scope="module", params=[IRT, HALVING], ids=["irt", "halving"])
def config(request: pytest.FixtureRequest) -> Experiment:
    return reduced(request.param)


@pytest.fixture(scope="module")
def whole(config: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    drive(folder, config)
    return folder


def test_rounds_ask_nothing_twice_and_never_the_confirmation(whole: Path) -> None:
    seen: dict[tuple[int, str, str], list[int]] = {}
    rounds: dict[int, list[int]] = {}
    with RunStore.read(whole) as store:
        for result in store.results():
            if result.phase == "search":
                rounds.setdefault(result.candidate, []).append(result.round)
            for response in result.responses:
                seen.setdefault((result.candidate, result.phase, response.task), []).extend(response.items)
    assert all(len(items) == len(set(items)) for items in seen.values())
    assert all(found == list(range(len(found))) for found in rounds.values())
    assert max(map(len, rounds.values())) > 1
    for task in synthetic.TASKS:
        searched = {i for (_, phase, of), ids in seen.items() if (phase, of) == ("search", task) for i in ids}
        confirmed = {i for (_, phase, of), ids in seen.items() if (phase, of) == ("confirm", task) for i in ids}
        assert not searched & confirmed


def test_a_run_killed_at_any_step_and_resumed_ends_the_same(whole: Path, config: Experiment, tmp_path: Path) -> None:
    for steps in (1, 5, 9, 11, 14, 16, 19, 23, 26, 30):
        drive(tmp_path / str(steps), config, steps)
        drive(tmp_path / str(steps), config)
        assert archive(tmp_path / str(steps)) == archive(whole), steps


def test_a_run_replays_from_its_record(whole: Path, config: Experiment) -> None:
    with RunStore.read(whole) as store:
        info = synthetic.SyntheticWorker().info()
        search = Search(config, synthetic.LINEUP, store=_Silent(store), executor=None, info=info)  # type: ignore[arg-type]
        assert search.replay() == 3


class _Silent:
    """A store that takes notes without keeping them, as a replay needs no more."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name.startswith("set_") else getattr(self._store, name)


def test_reports_show_what_was_estimated(tmp_path: Path) -> None:
    drive(tmp_path / "run", reduced(IRT))
    with RunStore.read(tmp_path / "run") as store:
        summary, told = summarize(store), store.estimates()
    assert summary.confirmation is not None
    assert sorted(told) == [e.id for e in summary.entries.values() if e.kind != "answer"]
    for number, believed in told.items():
        shown = summary.entries[number].estimated
        assert shown is not None
        assert [measure.mean for measure in shown.each] == believed["scores"]
        assert shown.each[0].low <= shown.each[0].mean <= shown.each[0].high
    exact = {e.id for e in summary.entries.values() if e.kind == "anchor"}
    assert all(told[number]["sds"] == pytest.approx([0.0, 0.0], abs=1e-9) for number in exact)


def test_a_budget_of_items_ends_the_search(tmp_path: Path) -> None:
    one = 4 * 24 + 6 * 24
    drive(tmp_path / "run", reduced({}, budget={"evaluations": 400, "items": one + 6 * 24 + 10}))
    with RunStore.read(tmp_path / "run") as store:
        generations = {c.generation for c in store.candidates() if c.kind == "search"}
        spent = sum(len(r.items) for x in store.results("search") for r in x.responses)
        assert is_complete(store, reduced({}, budget={"evaluations": 400, "items": one + 6 * 24 + 10}))
        assert not is_complete(store, reduced({}, budget={"evaluations": 400, "items": one + 2 * 6 * 24}))
    assert generations == {0, 1}
    assert spent == one + 6 * 24


def test_a_small_universe_takes_fewer_items_than_the_search_may_ask(tmp_path: Path) -> None:
    """One with 8 items of each task: another generation takes 6 * 16, not 6 * 24."""
    small = {"estimator": {"kind": "irt", "promote": 1, "universe": 8}}
    spent = 4 * 16 + 6 * 16
    drive(tmp_path / "run", reduced(small, budget={"evaluations": 400, "items": spent}))
    with RunStore.read(tmp_path / "run") as store:
        assert sum(len(r.items) for x in store.results("search") for r in x.responses) == spent
        assert is_complete(store, reduced(small, budget={"evaluations": 400, "items": spent + 6 * 16 - 1}))
        assert not is_complete(store, reduced(small, budget={"evaluations": 400, "items": spent + 6 * 16}))


def test_candidates_that_fail_in_a_later_round_are_out(tmp_path: Path) -> None:
    class Fragile(synthetic.SyntheticWorker):  # type: ignore[misc]
        def run(self, job: Job) -> Outcome:
            if job.round == 1 and job.candidate % 2:
                return Failed(candidate=job.candidate, phase=job.phase, round=1, stage="evaluate", reason="broke")
            outcome: Outcome = super().run(job)
            return outcome

    drive(tmp_path / "run", reduced(HALVING), worker=Fragile)
    with RunStore.read(tmp_path / "run") as store:
        failed = {failure.candidate for failure in store.failures()}
        summary = summarize(store)
    assert failed
    assert all(summary.entries[number].estimated is None for number in failed)
    assert summary.state == "finished"
