"""Every algorithm through the whole loop: a run that is killed on the way ends where the undisturbed one ends."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from evomerge.opening import open_run, space_of
from evomerge.runs import RunStore
from evomerge.search import Search
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


def drive(folder: Path, config: Any, steps: int | None = None) -> bytes:
    """Run, for some steps at most; what is recorded then."""
    executor = SerialExecutor(synthetic.SyntheticWorker)
    with open_run(folder, config, synthetic.LINEUP, space_of(config, synthetic.LINEUP)) as store:
        search = Search(config, synthetic.LINEUP, store=store, executor=executor, info=executor.start())
        for taken, _ in enumerate(search.run(Stop()), start=1):
            if taken == steps:
                break
    with RunStore.read(folder) as store:
        return store.archive()


@pytest.mark.parametrize("kind", ["sep_cma", "cat_cma", "nsga3", "sms_emoa", "islands", "map"])
def test_a_killed_run_ends_where_an_undisturbed_one_does(kind: str, tmp_path: Path) -> None:
    config = synthetic.experiment(algorithm={"kind": kind, "population": 14}, budget={"evaluations": 4 + 5 * 14})
    whole = drive(tmp_path / "whole", config)
    for steps in (17, 40):
        assert drive(tmp_path / "killed", config, steps) != whole
    assert drive(tmp_path / "killed", config) == whole
