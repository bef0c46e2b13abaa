"""Runs that are looked at: nothing is left beside them, and those that are too large are not copied for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import StoreError
from evomerge.runs import RunStore


@pytest.fixture(autouse=True, params=[0, 1 << 40], ids=["in place", "copied"])
def larger_is_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.runs.schema._LARGE", request.param)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_live_run_is_read_as_it_was_when_the_reading_began(filled: RunStore, samples: Any, complete: Any) -> None:
    before = filled.archive()
    with RunStore.read(filled.folder) as reader:
        filled.add_candidates([samples.candidate(77)])
        complete(filled, 77)
        assert reader.archive() == before
    with RunStore.read(filled.folder) as reader:
        assert reader.archive() == filled.archive() != before


def test_a_closed_run_is_read_without_a_trace(filled: RunStore) -> None:
    expected = filled.archive()
    filled.close()
    assert names(filled.folder) == ["run.db", "run.lock"]
    with RunStore.read(filled.folder) as reader:
        assert reader.archive() == expected
    assert names(filled.folder) == ["run.db", "run.lock"]


def test_what_a_killed_driver_left_is_read(filled: RunStore, tmp_path: Path) -> None:
    remains = tmp_path / "remains"
    remains.mkdir()
    for name in ("run.db", "run.db-wal"):
        shutil.copyfile(filled.folder / name, remains / name)
    with RunStore.read(remains) as reader:
        assert reader.archive() == filled.archive()
    assert names(remains) == ["run.db", "run.db-wal"]


def test_it_cannot_be_written(filled: RunStore) -> None:
    with RunStore.read(filled.folder) as reader, pytest.raises(StoreError, match="read-only"):
        reader.set_meta("state", "finished")


def test_counts_say_how_much_there_is(filled: RunStore) -> None:
    counts = filled.counts()
    assert counts["candidates"] == len(filled.candidates())
    assert counts["results"] == len(filled.results())
    assert counts["failures"] == len(filled.failures())
    assert counts["confirmed"] == len({r.candidate for r in filled.results("confirm")})
    assert counts["copied"] == sum(r.cached_from is not None for r in filled.results())
    attempts = [a.status for a in filled.attempts()]
    told = {name.split()[1]: count for name, count in counts.items() if name.startswith("attempt ")}
    assert told == {status: attempts.count(status) for status in set(attempts)}


def test_a_recorded_candidate_is_the_one_that_was_added(filled: RunStore) -> None:
    for candidate in filled.candidates():
        assert filled.digests()[candidate.id] == candidate.recipe.digest
        again = next(c for c in filled.candidates() if c.id == candidate.id)
        assert again == candidate
        assert again.to_row() == candidate.to_row()


def test_writes_together_are_all_there_or_none(filled: RunStore, samples: Any, complete: Any) -> None:
    before = filled.archive()
    filled.add_candidates([samples.candidate(number) for number in (70, 71)])
    registered = filled.archive()

    def fail() -> None:
        with filled.together():
            complete(filled, 70)
            complete(filled, 71)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert before != registered == filled.archive()
    with filled.together():
        complete(filled, 70)
        complete(filled, 71)
    assert [result.candidate for result in filled.results()][-2:] == [70, 71]
