"""A function of the user's is found by workers in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.config import (
    FitnessConfig,
    FunctionConfig,
    ItemsConfig,
    ObjectiveConfig,
    PoolConfig,
    RayConfig,
    TransformersConfig,
)
from evomerge.outcome import Failed, ItemSet, Job, Scored
from evomerge.recipe import uniform
from evomerge.workers import WorkerSpec, build_executor

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"
CODE = """
def sevens(engine, items):
    if 3 in items:
        raise LookupError("three")
    return [7 * item for item in items]
"""


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_workers_find_the_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    own = FunctionConfig(kind="function", function="mine:sevens", items=20, folder=tmp_path)
    spec = WorkerSpec(
        pool=PoolConfig(base=MODELS / "base", experts={"rev": MODELS / "rev"}),
        fitness=FitnessConfig(
            scorers={"own": own},
            objectives=(ObjectiveConfig(name="own", task="own"),),
            items=ItemsConfig(search=4, confirm=4),
        ),
        engine=TransformersConfig(device="cpu"),
        seed=0,
    )
    recipe = uniform(("rev",), layers=4, dtype="bfloat16")
    executor = build_executor(RayConfig(kind="ray", workers=1), spec)
    try:
        assert executor.start().sizes == {"own": 20}
        outcomes = []
        for candidate, items in enumerate([(1, 5), (3, 4)]):
            job = Job(candidate=candidate, phase="search", recipe=recipe, items=ItemSet.of({"own": items}))
            executor.submit(job)
            while not (found := executor.wait(timeout=60)):
                pass
            outcomes += found
    finally:
        executor.close()
    scored, failed = outcomes
    assert isinstance(scored, Scored)
    assert scored.responses[0].values == (7.0, 35.0)
    assert isinstance(failed, Failed)
    assert (failed.stage, failed.reason) == ("evaluate", "scorer 'own' (mine:sevens): LookupError: three")
