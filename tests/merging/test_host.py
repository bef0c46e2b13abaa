from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.merging.host import host_memory

GIB = 1 << 30
MACHINE = host_memory(free=False, groups=Path("/nowhere"))


def test_a_machine_has_at_least_what_is_free(tmp_path: Path) -> None:
    assert 0 < host_memory(free=True, groups=tmp_path) <= MACHINE


@pytest.mark.parametrize(
    ("limit", "use"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
    ids=["version 2", "version 1"],
)
def test_a_container_has_its_limit_less_what_it_uses(tmp_path: Path, limit: str, use: str) -> None:
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text(f"{MACHINE // 16}\n")
    (tmp_path / use).write_text(f"{MACHINE // 32}\n")
    assert host_memory(free=False, groups=tmp_path) == MACHINE // 16
    assert host_memory(free=True, groups=tmp_path) == MACHINE // 16 - MACHINE // 32


def test_copies_of_files_are_not_in_use(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(str(MACHINE // 16))
    (tmp_path / "memory.current").write_text(str(MACHINE // 32))
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {MACHINE // 64}\n")
    assert host_memory(free=True, groups=tmp_path) == MACHINE // 16 - MACHINE // 32 + MACHINE // 64


@pytest.mark.parametrize("limit", ["max", "", str(2**63 - 4096)])
def test_no_limit_is_the_machines(tmp_path: Path, limit: str) -> None:
    (tmp_path / "memory.max").write_text(limit)
    assert host_memory(free=False, groups=tmp_path) == MACHINE
