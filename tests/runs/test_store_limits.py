"""What the operating system may refuse: disk space, permission."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import DiskError, StoreError
from evomerge.runs import RunStore

NOBODY = 65534


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def read_only_run(complete: Callable[[RunStore, int], None], samples: Any) -> Iterator[tuple[RunStore, Path]]:
    """A run in a folder that only root might write, and a process that is not root."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    store = RunStore.create(place / "run", {})
    store.add_candidates([samples.candidate(0)])
    complete(store, 0)
    user = os.geteuid()
    try:
        (place / "run").chmod(0o555)
        for path in (place / "run").iterdir():
            path.chmod(0o444)
        if user == 0:
            os.seteuid(NOBODY)
        yield store, place
    finally:
        os.seteuid(user)
        store.close()
        (place / "run").chmod(0o755)
        shutil.rmtree(place)


def test_a_full_disk_loses_nothing_that_was_recorded(store: RunStore, complete: Any, samples: Any) -> None:
    store.add_candidates([samples.candidate(number) for number in range(300)])
    numbers = iter(range(300))
    with files_limited_to(240_000), pytest.raises(DiskError, match="nothing recorded is lost: free space"):
        all(complete(store, number) is None for number in numbers)
    done = next(numbers) - 1
    assert 0 < done < 299
    assert [result.candidate for result in store.results()] == list(range(done))
    store.close()
    with RunStore.open(store.folder) as again:
        assert [result.candidate for result in again.results()] == list(range(done))
        tries = sum(attempt.candidate == done for attempt in again.attempts())
        job = samples.job(done, attempt=tries + 1)
        again.start_attempt(job)
        assert again.record(samples.scored(done), job=job)
        assert [result.seq for result in again.results()] == list(range(done + 1))


def test_a_database_at_its_limit_is_a_full_disk(store: RunStore, samples: Any) -> None:
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskError, match="the disk refused a write"):
        store.add_candidates([samples.candidate(number) for number in range(300)])
    assert store.candidates() == []


def test_a_full_disk_leaves_no_half_made_run(tmp_path: Path) -> None:
    with files_limited_to(20_000), pytest.raises(DiskError):
        RunStore.create(tmp_path / "run", {"much": "x" * 50_000})
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]
    RunStore.create(tmp_path / "run", {}).close()


def test_a_read_only_run_can_be_read_but_not_driven(read_only_run: tuple[RunStore, Path]) -> None:
    live, _ = read_only_run
    with RunStore.read(live.folder) as reader:
        assert len(reader.results()) == 1
    with pytest.raises(StoreError, match=r"expected a folder that can be written; got read-only .*change its perm"):
        RunStore.open(live.folder)


def test_a_closed_run_on_read_only_storage_can_be_read(read_only_run: tuple[RunStore, Path]) -> None:
    live, place = read_only_run
    copy = place / "run"
    user = os.geteuid()
    os.seteuid(os.getuid())
    live.close()
    os.seteuid(user)
    assert sorted(path.name for path in copy.iterdir()) == ["run.db", "run.lock"]
    with RunStore.read(copy) as reader:
        assert len(reader.results()) == 1


def test_a_new_run_in_a_read_only_folder_is_refused(read_only_run: tuple[RunStore, Path]) -> None:
    _, place = read_only_run
    with pytest.raises(StoreError, match="got read-only"):
        RunStore.create(place / "run" / "new", {})


def test_the_remains_of_a_killed_driver_on_read_only_storage_can_be_read(filled: RunStore, tmp_path: Path) -> None:
    """A copy of a live folder is what a kill leaves behind: a database and a log that was not merged into it."""
    remains = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        for name in ("run.db", "run.db-wal"):
            shutil.copyfile(filled.folder / name, remains / name)
        assert (remains / "run.db-wal").stat().st_size > 0
        for path in (*remains.iterdir(), remains):
            path.chmod(0o555)
        if user == 0:
            os.seteuid(NOBODY)
        with RunStore.read(remains) as reader:
            assert reader.archive() == filled.archive()
    finally:
        os.seteuid(user)
        remains.chmod(0o755)
        shutil.rmtree(remains)
