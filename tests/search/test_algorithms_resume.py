"""Every algorithm through the whole loop: a run that is killed on the way ends where the undisturbed one ends."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from evomerge.config import AlgorithmConfig

_spec = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
assert _spec is not None
assert _spec.loader is not None
synthetic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

POPULATION = 12
JOBS = int(os.environ.get("JOBS", "17"))
"""Jobs that a driver does before it dies; `JOBS=1` kills runs at every step, which takes minutes."""
SPACES: tuple[dict[str, Any], ...] = (
    synthetic.experiment().space.model_dump(),
    {"kind": "soup"},
    {"kind": "routing"},
)
"""An algorithm searches the first that it takes."""
TWO_GENES = {**SPACES[0], "knots": 1, "genes": {"weight": {"low": 0, "high": 1, "edges": "first"}}}
KEYS: dict[str, dict[str, Any]] = {
    "refined": {
        "stages": [
            {"knots": 1, "evaluations": 24, "algorithm": {"kind": "islands", "population": POPULATION}},
            {"algorithm": {"kind": "nsga2", "population": 6}},
        ]
    },
    "grid": {"levels": 7},
}
"""What an algorithm needs beside a population."""


class Killed(BaseException):
    """The end of a driver, which nothing in it may catch."""


def worker_that_dies_after(jobs: int) -> Callable[[], Any]:
    left = iter(range(jobs))

    def before(_: Any) -> None:
        if next(left, None) is None:
            raise Killed

    return lambda: synthetic.SyntheticWorker(before)


def killed_again_and_again(folder: Path, config: Any, jobs: int) -> int:
    """Run to the end through drivers that each do so many jobs; how many died."""
    died = 0
    while True:
        try:
            synthetic.drive(folder, config, worker=worker_that_dies_after(jobs))
            return died
        except Killed:
            died += 1


def experiment(kind: str) -> Any:
    """60 evaluations and the anchors, on a space that the algorithm takes."""
    keys = {"kind": kind, **KEYS.get(kind, {"population": POPULATION})}
    algorithm = TypeAdapter(AlgorithmConfig).validate_python(keys)
    space = TWO_GENES if kind == "grid" else next(s for s in SPACES if not algorithm.misfit(2, space=s["kind"]))
    return synthetic.experiment(algorithm=keys, space=space, budget={"evaluations": 4 + 60})


@pytest.mark.parametrize("kind", AlgorithmConfig.kinds)
def test_a_run_that_dies_again_and_again_ends_where_an_undisturbed_one_does(kind: str, tmp_path: Path) -> None:
    config = experiment(kind)
    synthetic.drive(tmp_path / "whole", config)
    assert killed_again_and_again(tmp_path / "killed", config, JOBS) >= 60 // JOBS
    assert synthetic.archive(tmp_path / "killed") == synthetic.archive(tmp_path / "whole")
