"""Constraints in the loop: anchors to compare with answer every draw, broken candidates stay off the front."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from evomerge.config import Experiment
from evomerge.opening import open_run, space_of
from evomerge.reports import summarize
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor

_spec = importlib.util.spec_from_file_location("synthetic_constrained", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

KEEP = {"name": "kept", "task": "beta", "at_least": 0.0, "relative_to": "uniform"}


def constrained(**fitness: Any) -> Experiment:
    plain = synthetic.experiment().model_dump(mode="json")
    made: Experiment = synthetic.experiment(fitness=plain["fitness"] | {"constraints": [KEEP]} | fitness)
    return made


def drive(folder: Path, config: Experiment, steps: int | None = None) -> None:
    lineup, executor = synthetic.LINEUP, SerialExecutor(synthetic.SyntheticWorker)
    with open_run(folder, config, lineup, space_of(config, lineup)) as store:
        search = Search(config, lineup, store=store, executor=executor, info=executor.start())
        for taken, _ in enumerate(search.run(Stop()), start=1):
            if taken == steps:
                return


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
    archives = []
    for name in ("whole", "cut"):
        with RunStore.read(tmp_path / name) as store:
            archives.append(store.archive())
    assert archives[0] == archives[1]


def test_constraints_name_anchors() -> None:
    with pytest.raises(ValueError, match="expected one of base, a, b, uniform; got 'nobody'"):
        constrained(constraints=[KEEP | {"relative_to": "nobody"}])


def test_constraints_and_objectives_do_not_share_a_name() -> None:
    with pytest.raises(ValueError, match="names of objectives and constraints must be distinct"):
        constrained(constraints=[KEEP | {"name": "alpha"}])
