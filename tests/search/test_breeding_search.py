"""Spaces that cross genomes through the whole loop: items reach M2N2, runs resume and replay, parents are recorded."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from evomerge.fitting import space_of
from evomerge.guard import warnings_of
from evomerge.opening import open_run
from evomerge.outcome import Job, Outcome
from evomerge.replay import replay_genomes
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.spaces import Breeding, Genome
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor, WorkerInfo

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

PLACES = [("embed", None), ("head", None), *((role, at) for role in ("attention", "mlp", "norm") for at in range(4))]
PRODUCTS: Any = tuple((role, layer, [[4.0, 3.0, 2.0], [3.0, 4.0, 1.0], [2.0, 1.0, 4.0]]) for role, layer in PLACES)
SPACES: dict[str, dict[str, Any]] = {
    "split_point": {"kind": "split_point"},
    "with base": {"kind": "split_point", "places": "module", "base": True},
    "soup": {"kind": "soup", "knots": 2, "select": True},
}


class Worker(synthetic.SyntheticWorker):  # type: ignore[misc]
    """Also measured the models, if it may; fails one candidate in seven."""

    products: Any = PRODUCTS

    def info(self) -> WorkerInfo:
        found: WorkerInfo = replace(super().info(), products=self.products)
        return found

    def run(self, job: Job) -> Outcome:
        if job.candidate % 7 == 6:
            raise OSError("out of luck")
        done: Outcome = super().run(job)
        return done


class Elsewhere(Worker):
    """Another machine, whose last bits differ."""

    products = tuple((role, at, [[v * (1 + 1e-9) for v in row] for row in rows]) for role, at, rows in PRODUCTS)


def experiment(space: str, **changes: Any) -> Any:
    data = {
        "space": SPACES[space],
        "algorithm": {"kind": "m2n2", "population": 8, "archive": 6},
        "budget": {"evaluations": 4 + 4 * 8},
    }
    return synthetic.experiment(**(data | changes))


def drive(folder: Path, config: Any, steps: int | None = None, worker: Any = Worker) -> bytes:
    executor = SerialExecutor(worker)
    with open_run(folder, config, synthetic.LINEUP, space_of(config, synthetic.LINEUP)) as store:
        search = Search(config, synthetic.LINEUP, store=store, executor=executor, info=executor.start())
        for taken, _ in enumerate(search.run(Stop()), start=1):
            if taken == steps:
                break
    found: bytes = synthetic.archive(folder)
    return found


@pytest.mark.parametrize("space", SPACES)
def test_a_killed_run_ends_where_an_undisturbed_one_does(space: str, tmp_path: Path) -> None:
    config = experiment(space)
    whole = drive(tmp_path / "whole", config)
    for steps in (9, 21):
        assert drive(tmp_path / "killed", config, steps) != whole
    assert drive(tmp_path / "killed", config, worker=Elsewhere) == whole
    assert replay_genomes(tmp_path / "killed") == 4


def test_races_fresh_items_and_constraints(tmp_path: Path) -> None:
    config = experiment("soup")
    fitness = config.fitness.model_dump(mode="json") | {
        "race": {"kind": "halving", "rounds": 3},
        "constraints": [{"name": "floor", "task": "alpha", "at_least": 0.3}],
    }
    racing = experiment("soup", fitness=fitness)
    whole = drive(tmp_path / "whole", racing)
    drive(tmp_path / "killed", racing, 17)
    assert drive(tmp_path / "killed", racing) == whole


def test_parents_are_recorded(tmp_path: Path) -> None:
    config = experiment("split_point")
    drive(tmp_path / "run", config)
    space = space_of(config, synthetic.LINEUP, PRODUCTS)
    assert isinstance(space, Breeding)
    with RunStore.read(tmp_path / "run") as store:
        lineage = json.loads(store.meta("lineage") or "{}")
        bred = {c.id: c for c in store.candidates() if c.kind == "search"}
    founders = [c for c in bred.values() if str(c.id) not in lineage]
    assert [Genome(c.genome or ()) for c in founders] == list(space.known)
    for number, told in lineage.items():
        first, second = (Genome(bred[parent].genome or ()) for parent in told["parents"])
        child = space.cross(first, second, split=told["split"], share=told["share"])
        assert bred[int(number)].genome == child.values


def test_a_model_alone_is_scored_once(tmp_path: Path) -> None:
    drive(tmp_path / "run", experiment("split_point"))
    with RunStore.read(tmp_path / "run") as store:
        copied = [result for result in store.results() if result.phase == "search" and result.cached_from is not None]
        labels = {c.id: c.label for c in store.candidates()}
    assert [labels[result.cached_from or 0] for result in copied[:2]] == ["a", "b"]


def test_it_takes_only_spaces_that_cross() -> None:
    parameter = synthetic.experiment().space.model_dump(mode="json")
    with pytest.raises(ValidationError, match=r"m2n2 searches spaces that cross genomes, .*soup; got parameter"):
        synthetic.experiment(space=parameter, algorithm={"kind": "m2n2"})


def test_fresh_items_are_warned_of() -> None:
    config = experiment("soup")
    items = config.fitness.items.model_copy(update={"draw": "fixed"})
    fixed = config.model_copy(update={"fitness": config.fitness.model_copy(update={"items": items})})
    assert "m2n2 compares candidates of all generations item by item" in " ".join(warnings_of(config))
    assert not warnings_of(fixed)


@pytest.mark.parametrize("kind", ["cma", "nsga2", "random"])
def test_other_algorithms_search_these_spaces_too(kind: str, tmp_path: Path) -> None:
    for space in SPACES:
        config = experiment(space, algorithm={"kind": kind, "population": 8})
        drive(tmp_path / space, config)
        assert replay_genomes(tmp_path / space) == 4
