"""The shipped worker profiles, and what a profile may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.config import RayConfig, WorkerRange, load_experiment, shipped_names
from evomerge.errors import ConfigError
from evomerge.launch import check_memory
from evomerge.pools import open_pool


@pytest.mark.parametrize("name", shipped_names("cluster"))
def test_every_profile_loads_by_name(name: str) -> None:
    executor = load_experiment("quickstart", [f"executor={name}"]).executor
    assert isinstance(executor, RayConfig)
    assert 1 <= executor.fewest <= executor.most


def test_a_profile_may_lie_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("kind: ray\nworkers: {max: 5}\n")
    executor = load_experiment("quickstart", [f"executor={tmp_path / 'mine.yaml'}"]).executor
    assert isinstance(executor, RayConfig)
    assert (executor.fewest, executor.most) == (1, 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("executor=gpuu", "did you mean 'gpu"),
        ("executor={kind: ray, workers: 0}", "greater than or equal to 1"),
        ("executor={kind: ray, workers: {min: 3, max: 2}}", "min: expected at most max, 2; got 3"),
        ("executor={kind: ray, gpus: 1.5}", "a fraction of one GPU or a whole number; got 1.5"),
        ("executor={kind: ray, gpus: 0.33333}", "at most four digits after the point, as Ray counts; got 0.33333"),
        ("executor={kind: ray, cpus: 0.00001}", "at most four digits after the point, as Ray counts; got 1e-05"),
        ("executor={kind: ray, address: local}", "expected auto or HOST:PORT; got 'local'; leave it out for this"),
        ("executor={kind: ray, stage: here}", "an absolute path of a folder below another"),
        ("executor={kind: ray, stage: /}", "an absolute path of a folder below another"),
    ],
)
def test_faults_are_named(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_experiment("quickstart", [change])


def test_a_profile_that_cannot_hold_the_pool_is_refused_before_anything_starts() -> None:
    small = load_experiment("quickstart", ["executor={kind: ray, memory_gib: 0.001}"])
    pool = open_pool(small)
    with pytest.raises(
        ConfigError, match=r"expected memory for each worker: .*; got 1.0 MiB of host memory for 1 worker"
    ):
        check_memory(small, pool, pool.dtype)
    check_memory(load_experiment("quickstart", ["executor={kind: ray, memory_gib: 2}"]), pool, pool.dtype)


def test_a_number_is_a_range() -> None:
    assert RayConfig(kind="ray", workers=3).most == 3
    assert RayConfig(kind="ray", workers=3).fewest == 1
    assert RayConfig(kind="ray", workers=WorkerRange(min=2, max=3)).fewest == 2
