"""How much memory this machine has for this process: of the whole machine, or of the container that it runs in.

Knows nothing of what the memory is for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["host_memory"]

_GROUPS = Path("/sys/fs/cgroup")

_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Limit and use of a control group, as its second and first version name them."""


def host_memory(*, free: bool, groups: Path = _GROUPS) -> int:
    """Bytes of memory: all, or what programs could still get.

    Args:
        free: only what is not in use.
        groups: where Linux keeps the limits of a container.
    """
    return min(_of_machine(free), *_of_container(groups, free))


def _of_machine(free: bool) -> int:
    if free:
        with suppress(OSError, ValueError, StopIteration):
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_container(groups: Path, free: bool) -> list[int]:
    """The limit of the container, less what it uses if only that is asked for; never a list of nothing."""
    found = [2**63]
    for limit, use in _FILES:
        with suppress(OSError, ValueError):  # not there, or "max": no limit
            most = int((groups / limit).read_text(encoding="ascii"))
            used = int((groups / use).read_text(encoding="ascii")) - _reclaimable((groups / use).parent) if free else 0
            found.append(max(most - used, 0))
    return found


def _reclaimable(group: Path) -> int:
    """Bytes that count as used but are only copies of files, which the system drops when memory is wanted."""
    with suppress(OSError, ValueError):
        rows = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    return 0
