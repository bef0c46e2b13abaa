"""Run folders that were made before a key of the configuration was there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import StoreError
from evomerge.opening import open_run, space_of
from evomerge.runs import RunStore

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
