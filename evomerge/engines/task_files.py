"""Finds lm-eval task files: the user's own by reading them, lm-eval's stock ones by a text search.

lm-eval's index of its 11,000 stock tasks takes half a minute to build; the search takes a second and runs only for a
name that no file of the user defines. Builds no task, and needs no lm-eval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import yaml

from evomerge.config.faults import near
from evomerge.errors import TaskError

__all__ = ["Faults", "TaskFiles", "find_task_files", "read_task"]

P = ParamSpec("P")
T = TypeVar("T")

_STOCK_NAME = re.compile(r"""^task:[ \t]*["']?([^\s"'#\[\]]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)


class Faults(list[str]):
    """Messages of `TaskError`s, so that a user sees all of them at once."""

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The function's result, or None after a fault."""
        try:
            return function(*args, **kwargs)
        except TaskError as error:
            self.append(str(error))
            return None

    def check(self) -> None:
        """Raise what was collected.

        Raises:
            TaskError: there was a fault.
        """
        if self:
            count = "1 fault" if len(self) == 1 else f"{len(self)} faults"
            raise TaskError("\n".join([f"fitness: {count}", *(f"  {fault}" for fault in dict.fromkeys(self))]))


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFiles:
    """The user's task files.

    Attributes:
        tasks: file of every task, by name.
        groups: file of every group of tasks, by name.
    """

    tasks: Mapping[str, Path]
    groups: Mapping[str, Path]

    def file_of(self, name: str) -> Path:
        """The file that defines a task: the user's, or lm-eval's own.

        Raises:
            TaskError: no such task, or a group of tasks.
        """
        if name in self.tasks:
            return self.tasks[name]
        if name in self.groups:
            raise TaskError(
                f"task {name!r}: expected one task; got a group ({self.groups[name]}); name each of its tasks in an "
                "objective of its own"
            )
        stock = _stock_tasks()
        if name in stock:
            return stock[name]
        raise TaskError(
            f"task {name!r}: unknown{near(name, [*self.tasks, *stock])}; the task files define {sorted(self.tasks)}; "
            "lm-eval has no single task of that name"
        )


def find_task_files(paths: Iterable[Path]) -> TaskFiles:
    """Read the names of all tasks in files and folders.

    Args:
        paths: YAML files, or folders that are searched for them.

    Raises:
        TaskError: every path that does not exist, file that cannot be read, and name that is defined twice.
    """
    faults = Faults()
    tasks: dict[str, Path] = {}
    groups: dict[str, Path] = {}
    files = [file for path in paths for file in faults.attempt(_yaml_files, path) or []]
    for file in dict.fromkeys(files):
        content = faults.attempt(read_task, file) or {}
        kind, name = (groups, content["group"]) if "group" in content else (tasks, content.get("task"))
        if not isinstance(name, str):
            continue  # a fragment that other files include
        if kind.setdefault(name, file) != file:
            faults.append(f"task {name!r}: defined twice, in {kind[name]} and {file}; rename one")
    faults.check()
    return TaskFiles(tasks=tasks, groups=groups)


def _yaml_files(path: Path) -> list[Path]:
    path = path.expanduser().resolve()
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.yaml")) if path.is_dir() else []
    if not files:
        got = "a folder without any" if path.is_dir() else "nothing"
        raise TaskError(f"{path}: expected a task file (.yaml) or a folder with such files; got {got}")
    return files


class _Loader(yaml.SafeLoader):
    """Reads `!function` and any other tag as its text."""


_Loader.add_multi_constructor("!", lambda loader, _tag, node: getattr(node, "value", None))


def read_task(file: Path) -> dict[str, Any]:
    """A task file with what it includes, its `!function` tags unresolved; runs nothing and needs no lm-eval.

    Raises:
        TaskError: it cannot be read, or is no mapping.
    """
    try:
        return _merged(file, frozenset())
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise TaskError(f"{file}: expected an lm-eval task file; got {type(error).__name__}: {error}") from error


def _merged(file: Path, above: frozenset[Path]) -> dict[str, Any]:
    """The file's own keys over those of the files that it includes."""
    file = file.resolve()
    content = yaml.load(file.read_bytes(), _Loader)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: no mapping")
    if file in above:
        raise ValueError(f"{file} includes itself")
    names = content.pop("include", None) or []
    found: dict[str, Any] = {}
    for name in names if isinstance(names, list) else [names]:
        found |= _merged(file.parent / name, above | {file})
    return found | content


@cache
def _stock_tasks() -> dict[str, Path]:
    """File of every single task that comes with lm-eval, by name."""
    package = find_spec("lm_eval")
    found: dict[str, Path] = {}
    if package is None or package.origin is None:
        return found
    root = Path(package.origin).parent / "tasks"
    for file in sorted(root.rglob("*.yaml")):
        for name in _STOCK_NAME.findall(file.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(name, file)
    return found
