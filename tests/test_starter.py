"""What `evomerge init` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evomerge.starter import starter


@pytest.mark.parametrize(("objectives", "kind"), [(1, "cma"), (2, "islands"), (6, "islands"), (7, "cma")])
def test_the_algorithm_fits_the_objectives(objectives: int, kind: str) -> None:
    names = [f"task{number}" for number in range(objectives)]
    experts = {"math": Path("math"), "code": Path("code")}
    text = starter(Path("mine.yaml"), Path("base"), experts, tasks=[Path("tasks")], names=names, fewest=192)
    written = yaml.safe_load(text)
    population = written["algorithm"]["population"]
    assert written["algorithm"]["kind"] == kind
    assert kind == "cma" or population >= 4 * (objectives + 1)
    assert (written["budget"]["evaluations"] - 4) % population == 0  # two experts, base and average
