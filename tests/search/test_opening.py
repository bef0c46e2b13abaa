"""Run folders that were made before a key of the configuration was there."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import ConfigError, StoreError
from evomerge.fitting import space_of
from evomerge.opening import earlier_evaluations, open_run
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run that knew no transforms."""
    config = synthetic.experiment()
    with open_run(tmp_path / "new", config, synthetic.LINEUP, space_of(config, synthetic.LINEUP)) as store:
        manifest: dict[str, Any] = dict(store.manifest)
    del manifest["experiment"]["space"]["transforms"]
    RunStore.create(tmp_path / "old", manifest).close()
    return tmp_path / "old"


def test_a_key_that_was_not_there_had_its_default(old: Path) -> None:
    config = synthetic.experiment()
    with open_run(old, config, synthetic.LINEUP, space_of(config, synthetic.LINEUP)) as store:
        assert store.candidates() == []


def test_another_value_is_a_change(old: Path) -> None:
    space = {**synthetic.experiment().space.model_dump(), "transforms": ["star"]}
    config = synthetic.experiment(space=space)
    with pytest.raises(StoreError, match=r"space.transforms: the run has \['none'\], now it is \['star:40'\]"):
        open_run(old, config, synthetic.LINEUP, space_of(config, synthetic.LINEUP))


def test_residency_may_change_and_deltas_may_not(old: Path) -> None:
    config = synthetic.experiment()
    pinned, approximate = (
        config.model_copy(update={"engine": config.engine.model_copy(update=change)})
        for change in ({"residency": "pinned"}, {"deltas": "int8"})
    )
    open_run(old, pinned, synthetic.LINEUP, space_of(config, synthetic.LINEUP)).close()
    with pytest.raises(StoreError, match=r"engine\.deltas: the run has 'exact', now it is 'int8'"):
        open_run(old, approximate, synthetic.LINEUP, space_of(config, synthetic.LINEUP))


class TestWarmStart:
    def cma(self, earlier: Path | None = None, **changes: Any) -> Any:
        warm = {} if earlier is None else {"warm_start": str(earlier)}
        return synthetic.experiment(algorithm={"kind": "cma", "population": 6, **warm}, **changes)

    def finished(self, folder: Path, config: Any) -> Path:
        executor = SerialExecutor(synthetic.SyntheticWorker)
        space = space_of(config, synthetic.LINEUP)
        with open_run(folder, config, synthetic.LINEUP, space) as store:
            search = Search(config, synthetic.LINEUP, store=store, executor=executor, info=executor.start())
            assert list(search.run(Stop()))
        return folder

    def test_a_run_keeps_what_it_began_with_when_the_earlier_one_is_gone(self, tmp_path: Path) -> None:
        earlier = self.finished(tmp_path / "earlier", synthetic.experiment())
        warm = self.finished(tmp_path / "warm", self.cma(earlier))
        shutil.rmtree(earlier)
        with RunStore.read(warm) as store:
            assert len(earlier_evaluations(store)) == 3 * 6
            first = [c.genome for c in store.candidates() if c.generation == 0]
        with RunStore.read(self.finished(tmp_path / "cold", self.cma())) as store:
            assert first != [c.genome for c in store.candidates() if c.generation == 0]
        config = self.cma(earlier)
        with open_run(warm, config, synthetic.LINEUP, space_of(config, synthetic.LINEUP)) as store:
            info = SerialExecutor(synthetic.SyntheticWorker).start()
            assert Search(config, synthetic.LINEUP, store=store, executor=None, info=info).replay() == 3

    def test_other_genes_are_refused(self, tmp_path: Path) -> None:
        earlier = self.finished(tmp_path / "earlier", synthetic.experiment())
        space = {**synthetic.experiment().space.model_dump(), "genes": {"weight": {"low": 0, "high": 2}}}
        config = self.cma(earlier, space=space)
        with pytest.raises(
            StoreError, match=r"warm start needs a run over the same genes; differing: space.genes.weight"
        ):
            open_run(tmp_path / "warm", config, synthetic.LINEUP, space_of(config, synthetic.LINEUP))

    def test_a_run_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        config = self.cma(tmp_path / "nowhere")
        with pytest.raises(StoreError, match="expected a run"):
            open_run(tmp_path / "warm", config, synthetic.LINEUP, space_of(config, synthetic.LINEUP))


def test_more_genes_than_the_algorithm_takes_are_refused() -> None:
    space = {**synthetic.experiment().space.model_dump(), "knots": 4}
    config = synthetic.experiment(algorithm={"kind": "map", "population": 6}, space=space)
    with pytest.raises(ConfigError, match=r"algorithm.kind: map takes at most 8 genes"):
        space_of(config, synthetic.LINEUP)


def test_a_budget_that_changes_is_told(old: Path) -> None:
    config = synthetic.experiment()
    most = config.budget.evaluations
    told: list[str] = []
    for change in ({}, {"evaluations": most + 1000, "items": 5000}, {"evaluations": most, "items": None}):
        changed = config.model_copy(update={"budget": config.budget.model_copy(update=change)})
        open_run(old, changed, synthetic.LINEUP, space_of(config, synthetic.LINEUP), told.append).close()
    assert told == [
        f"{old}: budget.evaluations grows from {most} to {most + 1000:,}",
        f"{old}: budget.items shrinks from no limit to 5,000",
        f"{old}: budget.evaluations shrinks from {most + 1000:,} to {most}",
        f"{old}: budget.items grows from 5,000 to no limit",
    ]
