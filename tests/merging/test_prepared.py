from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging import cache, prepared, rank_tables, statistics
from evomerge.merging.pool import ModelPool

NAME = "layers.0.mlp.w"
FACTS = (np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7.5), np.zeros((0, 4), np.uint8), np.ones(3, np.uint16))


@pytest.fixture
def folder() -> Path:
    return prepared.folder()


@pytest.fixture
def pool(memory_pool: Callable[[Any], Any]) -> Any:
    return memory_pool({name: {NAME: torch.zeros(1 << 15)} for name in ("base", "one", "two")})


def elsewhere(pool: Any) -> Any:
    """The same models in a pool that memory knows nothing of."""
    return replace(pool, digest=pool.digest + "'") if isinstance(pool, ModelPool) else Renamed(pool)


class Renamed:
    def __init__(self, pool: Any) -> None:
        self.digest, self.contents, self.tensor = pool.digest + "'", pool.contents, pool.tensor


def ask(pool: Any, made: list[str], *, models: tuple[str, ...] = ("base", "one"), facts: Any = FACTS) -> Any:
    def make() -> Any:
        made.append("now")
        return facts

    return prepared.arrays(pool, "kind", models, (NAME,), make)


def assert_equal(found: Any, facts: Any = FACTS) -> None:
    assert [(fact.dtype, fact.shape, fact.tolist()) for fact in found] == [
        (fact.dtype, fact.shape, fact.tolist()) for fact in facts
    ]


def test_is_made_once_and_found_by_others(pool: Any) -> None:
    made: list[str] = []
    for where in (pool, pool, elsewhere(pool)):
        assert_equal(ask(where, made))
    assert made == ["now"]
    ask(pool, made, models=("base", "two"))
    ask(pool, made, models=("one", "base"))
    assert len(made) == 3


def test_large_entries_are_mapped_and_small_tensors_are_not_kept(
    pool: Any, folder: Path, memory_pool: Callable[[Any], Any]
) -> None:
    large = (np.arange(1 << 18, dtype=np.int64), np.ones(3, np.float32))
    assert_equal(ask(pool, [], facts=large), large)
    assert_equal(ask(elsewhere(pool), [], facts=()), large)
    (entry,) = folder.iterdir()
    assert str(entry) in Path("/proc/self/maps").read_text()
    ask(memory_pool({name: {NAME: torch.zeros(9)} for name in ("base", "one")}), [])
    assert [*folder.iterdir()] == [entry]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "extend", "other key", "old version"])
@pytest.mark.parametrize("facts", [FACTS, (np.arange(1 << 18, dtype=np.int64),)], ids=["small", "large"])
def test_a_damaged_entry_is_made_again(
    pool: Any, folder: Path, damage: str, facts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    ask(pool, made, facts=facts)
    (entry,) = folder.iterdir()
    content = entry.read_bytes()
    middle = len(content) // 2
    if damage == "other key":
        ask(pool, [], models=("base", "two"), facts=facts)
        (other,) = set(folder.iterdir()) - {entry}
        other.replace(entry)
    elif damage == "old version":
        monkeypatch.setattr(prepared, "_VERSION", 0)
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        entry.unlink()  # others may have mapped it
        entry.write_bytes(
            {"truncate": content[:middle], "flip": flipped, "empty": b"", "extend": content + b"x"}[damage]
        )
    for where in (elsewhere(pool), elsewhere(elsewhere(pool))):
        assert_equal(ask(where, made, facts=facts), facts)
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_is_no_fault(
    pool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "file"))
    assert_equal(ask(pool, []))


def test_a_folder_that_can_only_be_read_is_read(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    ask(pool, [])
    monkeypatch.setattr(os, "utime", refuse)
    assert_equal(ask(elsewhere(pool), [], facts=()))


def test_what_was_not_used_for_longest_makes_room(pool: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = (np.zeros(1000, np.uint8),)
    for age, models in ((300, ("base", "one")), (100, ("base", "two")), (200, ("one", "two"))):
        before = set(folder.glob("*"))
        ask(pool, [], models=models, facts=facts)
        (entry,) = set(folder.iterdir()) - before
        os.utime(entry, (0, 1e9 - age))
    ask(elsewhere(pool), [], models=("base", "one"), facts=facts)  # used now
    monkeypatch.setattr(cache, "LIMIT", 3000)
    cache.make_room.cache_clear()
    made: list[str] = []
    ask(pool, [], models=("two", "base"), facts=facts)
    for models in (("base", "one"), ("base", "two"), ("one", "two")):
        ask(elsewhere(elsewhere(pool)), made, models=models, facts=facts)
    assert len(made) == 1


def test_facts_follow_the_models_and_not_the_pool(make_family: Callable[..., Any], tmp_path: Path) -> None:
    family = make_family()
    pool = ModelPool.open(family.base, family.experts)
    moved = family.experts["two"].rename(tmp_path / "moved")
    fewer = ModelPool.open(family.base, {"renamed": moved})
    assert fewer.contents["renamed"] == pool.contents["two"] != pool.contents["one"]
    assert fewer.contents["base"] == pool.contents["base"] not in (pool.contents["one"], pool.contents["two"])
    assert ModelPool.open(family.experts["one"], {"two": moved}).contents["two"] != pool.contents["two"]


def test_statistics_survive_the_process(memory_pool: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    pool = memory_pool({"base": {NAME: torch.zeros_like(x)}, "expert": {NAME: x}})
    difference = statistics.Difference(base="base", source="expert", names=(NAME,))
    found = rank_tables.ranked(pool, difference, [1, 1000]), statistics.l1(pool, difference)
    monkeypatch.setattr(rank_tables, "histogram", lambda *_: pytest.fail("computed again"))
    again = rank_tables.ranked(elsewhere(pool), difference, [1, 1000]), statistics.l1(elsewhere(pool), difference)
    assert again == found


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert prepared.folder().name == "facts"
    monkeypatch.delenv("EVOMERGE_CACHE")
    with pytest.raises(ConfigError, match="EVOMERGE_CACHE: expected a folder for facts about models; got no home"):
        prepared.folder()
