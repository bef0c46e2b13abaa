"""Every algorithm through the whole loop: a run that is killed at every step ends where the undisturbed one ends."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge.config import AlgorithmConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"


def loaded(name: str) -> Any:
    """A module beside the benchmarks, by the name under which its neighbours import it."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


loaded("synthetic_workers")
resuming = loaded("resuming")


def test_no_algorithm_is_forgotten() -> None:
    assert {keys["kind"] for keys in resuming.CASES.values()} >= {*AlgorithmConfig.kinds}


@pytest.mark.parametrize("case", resuming.CASES)
def test_a_run_that_dies_at_every_step_ends_where_an_undisturbed_one_does(case: str, tmp_path: Path) -> None:
    keys = resuming.CASES[case]
    found = resuming.resumed(keys, resuming.two_generations(keys), tmp_path)
    assert found.same
    assert found.deaths == found.jobs - 1
