"""The exception tree.

::

    EvomergeError            exit code 3
     ├── ConfigError         2   a file or option the user wrote is wrong; carries every fault
     ├── PoolError           2   models that cannot be read or merged together
     ├── TaskError           2   a benchmark task that cannot be loaded, split or scored
     ├── StoreError          2   a run folder that cannot be used (locked, changed, read-only, foreign)
     ├── MissingExtraError   2   an optional dependency is not installed
     ├── MergeError          3   a recipe could not be materialized
     ├── DiskError           3   the disk refused a write in mid-run
     └── RunError            3   the run cannot go on

Every message says what was expected, what was got and what to do next. The command line prints the message of an
`EvomergeError` and exits with its code; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

__all__ = [
    "ConfigError",
    "DiskError",
    "EvomergeError",
    "Fault",
    "MergeError",
    "MissingExtraError",
    "PoolError",
    "RunError",
    "StoreError",
    "TaskError",
    "require",
    "require_installed",
]


class EvomergeError(Exception):
    """Anything evomerge raises on purpose."""

    exit_code = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing wrong in a configuration.

    Attributes:
        path: where, in the user's terms, for example `$.algorithm.population`.
        message: expected, got, next step.
        line: line in the file, counted from 1; None when there is no file.
        file: the file, where it is not the one that the user named.
    """

    path: str
    message: str
    line: int | None = None
    file: str | None = None

    def __str__(self) -> str:
        place = ", ".join(([f"line {self.line}"] if self.line else []) + ([self.file] if self.file else []))
        return f"{self.path}{f' ({place})' if place else ''}: {self.message}"


class ConfigError(EvomergeError):
    """All faults of one configuration, reported together."""

    exit_code = 2

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {fault}" for fault in self.faults)]))


class PoolError(EvomergeError):
    """Models that cannot be read, or cannot be merged with each other."""

    exit_code = 2


class TaskError(EvomergeError):
    """A benchmark task that cannot be loaded, split or scored."""

    exit_code = 2


class StoreError(EvomergeError):
    """A run folder that cannot be used as asked."""

    exit_code = 2


class MissingExtraError(EvomergeError):
    """An optional dependency is needed and not installed."""

    exit_code = 2


class MergeError(EvomergeError):
    """A recipe could not be turned into weights."""


class DiskError(EvomergeError):
    """The operating system refused a write while a run was going on."""


class RunError(EvomergeError):
    """The run cannot go on."""


def require_installed(module: str, extra: str) -> None:
    """Make sure that an optional dependency is there, without importing it.

    Args:
        module: import name of the package, for example `"torch"`.
        extra: the extra of evomerge that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec(module) is None:
        raise MissingExtraError(
            f"this needs the package {module!r}, which is not installed; run: pip install 'evomerge[{extra}]'"
        )


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: import name, for example `"ray"`.
        extra: the extra of evomerge that installs it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    require_installed(module.partition(".")[0], extra)
    return import_module(module)
