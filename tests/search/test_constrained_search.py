"""Constraints in the loop: anchors to compare with answer every draw, broken candidates stay off the front."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from evomerge.config import Experiment
from evomerge.errors import RunError
from evomerge.fitting import space_of
from evomerge.opening import open_run
from evomerge.outcome import Failed, Job, Outcome
from evomerge.reports import model_card, summarize, verdict
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor

_spec = importlib.util.spec_from_file_location("synthetic_constrained", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
drive, archive = synthetic.drive, synthetic.archive

KEEP = {"name": "kept", "task": "beta", "at_least": 0.0, "relative_to": "uniform"}


def constrained(**fitness: Any) -> Experiment:
    plain = synthetic.experiment().model_dump(mode="json")
    made: Experiment = synthetic.experiment(fitness=plain["fitness"] | {"constraints": [KEEP]} | fitness)
    return made


def test_the_anchor_to_compare_with_answers_every_draw(tmp_path: Path) -> None:
    drive(tmp_path / "run", constrained())
    with RunStore.read(tmp_path / "run") as store:
        labels = {candidate.id: candidate.label for candidate in store.candidates()}
        rounds = [result.round for result in store.results("search") if labels[result.candidate] == "uniform"]
        digests = [r.items_digest for r in store.results("search") if labels[r.candidate] == "uniform"]
        others = {result.round for result in store.results("search") if labels[result.candidate] != "uniform"}
    assert rounds == [0, 1, 2]
    assert len(set(digests)) == 3
    assert others == {0}


def test_the_front_holds_no_candidate_that_breaks_a_constraint(tmp_path: Path) -> None:
    drive(tmp_path / "run", constrained())
    with RunStore.read(tmp_path / "run") as store:
        summary = summarize(store)
    assert summary.confirmation is not None
    broken = {entry.id for entry in summary.entries.values() if entry.broken}
    assert broken
    assert not broken & {*summary.front, *summary.confirmation.front, *summary.confirmation.probability}
    assert all("against uniform" in line for entry in summary.entries.values() for line in entry.broken)


@pytest.mark.parametrize("steps", [3, 10, 11, 12, 17, 18, 24])
def test_a_constrained_run_that_stops_and_resumes_ends_the_same(tmp_path: Path, steps: int) -> None:
    drive(tmp_path / "whole", constrained())
    drive(tmp_path / "cut", constrained(), steps)
    drive(tmp_path / "cut", constrained())
    assert archive(tmp_path / "cut") == archive(tmp_path / "whole")


def fails(phase: str, number: int, *, retry: bool = False, times: int = 99) -> Any:
    """A worker on which the uniform average, the last anchor, fails in one round."""
    left = [times]

    class Fails(synthetic.SyntheticWorker):  # type: ignore[misc]
        def run(self, job: Job) -> Outcome:
            if (job.candidate, job.phase, job.round) != (3, phase, number) or not left[0]:
                outcome: Outcome = super().run(job)
                return outcome
            left[0] -= 1
            return Failed(candidate=3, phase=job.phase, round=number, stage="evaluate", reason="broke", retry=retry)

    return Fails


@pytest.mark.parametrize("number", [0, 1])
def test_an_anchor_that_a_constraint_needs_ends_the_run_when_it_fails_and_can_be_repaired(
    tmp_path: Path, number: int
) -> None:
    drive(tmp_path / "whole", constrained())
    for _ in range(2):
        with pytest.raises(RunError, match="uniform, which the constraint 'kept' compares with, failed at stage eval"):
            drive(tmp_path / "cut", constrained(), worker=fails("search", number))
    with RunStore.read(tmp_path / "cut") as store:
        assert summarize(store).state == "stopped"
    drive(tmp_path / "cut", constrained())
    assert archive(tmp_path / "cut") == archive(tmp_path / "whole")


def test_a_worker_lost_now_and_then_is_not_held_against_an_anchor_of_many_rounds(tmp_path: Path) -> None:
    drive(tmp_path / "whole", constrained())
    for number, steps in ((0, 8), (1, 16), (2, None)):
        drive(tmp_path / "cut", constrained(), steps, worker=fails("search", number, retry=True, times=1))
    assert archive(tmp_path / "cut") == archive(tmp_path / "whole")


def test_a_constraint_that_was_not_confirmed_is_told(tmp_path: Path) -> None:
    drive(tmp_path / "run", constrained(), worker=fails("confirm", 0))
    with RunStore.read(tmp_path / "run") as store:
        summary = summarize(store)
    told = "the constraint 'kept' is not confirmed, because uniform failed on the confirmation items"
    assert told in summary.warnings
    assert told in verdict(summary).detail


@pytest.mark.parametrize("dominated", [False, True])
def test_a_candidate_that_breaks_a_constraint_is_no_gain_and_its_card_says_so(tmp_path: Path, dominated: bool) -> None:
    never = {"name": "never", "task": "beta", "at_least": 2.0}
    items = {"search": 12, "confirm": 48}
    drive(tmp_path / "free", constrained(constraints=[], items=items))
    drive(tmp_path / "bound", constrained(constraints=[never], items=items))
    found = {}
    for name in ("free", "bound"):
        with RunStore.read(tmp_path / name) as store:
            last = summarize(store)
        found[name] = verdict(last)
    assert last.confirmation is not None
    assert found["free"].kind == "better"
    assert found["bound"].kind == "none"
    assert found["bound"].candidate is None
    assert "no merged candidate keeps all constraints" in found["bound"].headline
    assert "which breaks never" in found["bound"].headline
    confirmed = [e.id for e in last.finalists] + [e.id for e in last.anchors]
    pick = next(i for i in confirmed if (i not in last.confirmation.front) == dominated)
    card = model_card(last, pick, base_models=dict.fromkeys("ab", "x") | {"base": "y"}, licences={}, mergekit_yaml="")
    assert "Breaks never" in card
    assert ("No other confirmed candidate dominates it" in card) == (pick in last.confirmation.front)


def test_progress_counts_no_candidate_twice(tmp_path: Path) -> None:
    config, executor = constrained(), SerialExecutor(synthetic.SyntheticWorker)
    lineup = synthetic.LINEUP
    with open_run(tmp_path, config, lineup, space_of(config, lineup)) as store:
        search = Search(config, lineup, store=store, executor=executor, info=executor.start())
        done = [step.done for step in search.run(Stop()) if step.phase == "search"]
    assert done == sorted(done)
    assert done[-1] == config.budget.evaluations


def test_a_run_without_finalists_ends_with_its_anchors(tmp_path: Path) -> None:
    class Hopeless(synthetic.SyntheticWorker):  # type: ignore[misc]
        def run(self, job: Job) -> Outcome:
            if job.candidate > 3:
                return Failed(candidate=job.candidate, phase=job.phase, stage="evaluate", reason="broke")
            outcome: Outcome = super().run(job)
            return outcome

    drive(tmp_path / "run", constrained(constraints=[]), worker=Hopeless)
    with RunStore.read(tmp_path / "run") as store:
        summary = summarize(store)
    assert summary.confirmation is not None
    assert set(summary.confirmation.front) <= {0, 1, 2, 3}
    assert verdict(summary).kind == "none"


def test_a_run_in_which_every_confirmation_fails_does_not_send_to_resume(tmp_path: Path) -> None:
    class Unconfirmed(synthetic.SyntheticWorker):  # type: ignore[misc]
        def run(self, job: Job) -> Outcome:
            if job.phase == "confirm":
                return Failed(candidate=job.candidate, phase=job.phase, stage="evaluate", reason="broke")
            outcome: Outcome = super().run(job)
            return outcome

    drive(tmp_path / "run", constrained(constraints=[]), worker=Unconfirmed)
    with RunStore.read(tmp_path / "run") as store:
        found = verdict(summarize(store))
    assert found.kind == "unconfirmed"
    assert "Every candidate failed on the confirmation items" in found.detail
    assert "to go on" not in found.detail


def test_constraints_name_anchors() -> None:
    with pytest.raises(ValueError, match="expected one of base, a, b, uniform; got 'nobody'"):
        constrained(constraints=[KEEP | {"relative_to": "nobody"}])


def test_constraints_and_objectives_do_not_share_a_name() -> None:
    with pytest.raises(ValueError, match="names of objectives and constraints must be distinct"):
        constrained(constraints=[KEEP | {"name": "alpha"}])
