from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from evomerge.config import PoolConfig
from evomerge.errors import DiskError, PoolError
from evomerge.merging.configured import configured_pool
from evomerge.merging.staging import check_staged, staged

MODELS = Path(__file__).parents[2] / "experiments" / "quickstart" / "models"


@pytest.fixture
def config(tmp_path: Path) -> PoolConfig:
    for name in ("base", "rev"):
        shutil.copytree(MODELS / name, tmp_path / "shared" / name)
    return PoolConfig(base=tmp_path / "shared" / "base", experts={"rev": tmp_path / "shared" / "rev"})


def test_a_copy_is_the_same_pool_elsewhere(config: PoolConfig, tmp_path: Path) -> None:
    pool, stage = configured_pool(config), tmp_path / "local"
    local = staged(config, pool.contents, stage)
    again = configured_pool(local)
    check_staged(again, pool.contents)
    assert again.digest == pool.digest
    assert local.base.parent == local.folders["rev"].parent == stage
    assert {folder.name for folder in stage.iterdir() if folder.is_dir()} == set(pool.contents.values())
    assert not any(os.stat(file).st_mode & 0o222 for file in local.base.iterdir())


def test_a_second_worker_copies_nothing_and_reads_nothing(config: PoolConfig, tmp_path: Path) -> None:
    contents = configured_pool(config).contents
    local = staged(config, contents, tmp_path / "local")
    before = {file: file.stat().st_mtime_ns for file in local.base.iterdir()}
    shutil.rmtree(tmp_path / "shared")
    assert staged(config, contents, tmp_path / "local") == local
    assert {file: file.stat().st_mtime_ns for file in local.base.iterdir()} == before


def test_only_what_makes_a_model_is_copied(config: PoolConfig, tmp_path: Path) -> None:
    (config.base / "pytorch_model.bin").write_bytes(b"a pickle")
    (config.base / "run_me.py").write_text("print()")
    contents = configured_pool(config).contents
    names = {file.suffix for file in staged(config, contents, tmp_path / "local").base.iterdir()}
    assert names <= {".safetensors", ".json", ".txt", ".model", ".jinja"}


def test_workers_that_come_up_together_make_one_copy(config: PoolConfig, tmp_path: Path) -> None:
    contents = dict(configured_pool(config).contents)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=staged, args=(config, contents, tmp_path / "local")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    left = [entry.name for entry in (tmp_path / "local").iterdir() if not entry.name.endswith(".lock")]
    assert sorted(left) == sorted(contents.values())


def test_where_there_are_no_locks_the_quicker_of_two_workers_copies(
    config: PoolConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    copy, contents = shutil.copyfile, configured_pool(config).contents

    def overtaken(source: Path, target: Path) -> None:
        monkeypatch.setattr(shutil, "copyfile", copy)
        staged(config, contents, tmp_path / "stage")
        copy(source, target)

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(shutil, "copyfile", overtaken)
    check_staged(configured_pool(staged(config, contents, tmp_path / "stage")), contents)
    assert not list((tmp_path / "stage").glob(".*.partial"))


def test_a_copy_of_something_else_is_refused(config: PoolConfig, tmp_path: Path) -> None:
    contents = configured_pool(config).contents
    local = staged(config, contents, tmp_path / "local")
    shutil.rmtree(local.base)
    shutil.copytree(config.folders["rev"], local.base)
    with pytest.raises(PoolError, match="expected a copy of 'base' as the driver knows it; got other contents"):
        check_staged(configured_pool(local), contents)


def test_a_full_disk_is_named_and_leaves_nothing(
    config: PoolConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = configured_pool(config).contents
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    with pytest.raises(DiskError, match=r"executor.stage\): expected room for .*; got 1.0 GiB; remove copies"):
        staged(config, contents, tmp_path / "local")
    assert [entry for entry in (tmp_path / "local").iterdir() if entry.is_dir()] == []


def test_a_place_that_cannot_be_written_is_named(config: PoolConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"\(executor.stage\): cannot be written"):
        staged(config, configured_pool(config).contents, tmp_path / "file" / "local")


@pytest.mark.parametrize("name", ["../outside", "a/b", "/etc"])
def test_nothing_is_written_outside_the_stage(config: PoolConfig, tmp_path: Path, name: str) -> None:
    with pytest.raises(PoolError, match="expected a copy inside"):
        staged(config, {"base": name, "rev": name}, tmp_path / "local")
    assert not (tmp_path / "outside").exists()
