"""What goes when the cache is full: what was not used for longest, and nothing that is being written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evomerge.merging import cache


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 3000)
    cache.make_room.cache_clear()


def entry(folder: Path, name: str, age: float, size: int = 1000) -> Path:
    """A folder with one file."""
    made = folder / name
    made.mkdir()
    (made / "file").write_bytes(bytes(size))
    os.utime(made, (1e9 - age, 1e9 - age))
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    for number, age in enumerate((5, 4, 3, 2, 1)):
        entry(tmp_path, str(number), age)
    cache.touch(tmp_path / "0")
    cache.make_room(tmp_path)
    assert names(tmp_path) == ["0", "3", "4"]


def test_locks_and_drafts_stay(tmp_path: Path) -> None:
    entry(tmp_path, ".draft.partial", 9, size=9000)
    (tmp_path / "a.lock").touch()
    entry(tmp_path, "a", 2, size=2000)
    entry(tmp_path, "b", 1, size=2000)
    cache.make_room(tmp_path)
    assert names(tmp_path) == [".draft.partial", "a.lock", "b"]


def test_a_process_never_drives_out_what_it_added(tmp_path: Path) -> None:
    cache.make_room(tmp_path)
    entry(tmp_path, "a", 1, size=9000)
    cache.make_room(tmp_path)
    assert names(tmp_path) == ["a"]


def test_sizes(tmp_path: Path) -> None:
    assert cache.size_of(entry(tmp_path, "a", 0)) == cache.size_of(tmp_path) == 1000
    assert cache.size_of(tmp_path / "nothing") == 0
