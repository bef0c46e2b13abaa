"""Models on a node's own disk: copied there once per node, whole or not at all, and read from there by all its workers.

A copy is named by the content of the model, so an equal model is never copied again and a changed one never mistaken
for it. Copies may be removed whenever no run uses them. Knows nothing of Ray or of runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import DiskError, PoolError, StoreError
from evomerge.merging.atomic import alone, complete_or_absent
from evomerge.merging.footprint import size
from evomerge.merging.small_files import unreadable

if TYPE_CHECKING:
    from evomerge.config import PoolConfig
    from evomerge.merging.pool import ModelPool

__all__ = ["check_staged", "staged"]

_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken"})
"""What a model is made of; anything else, pickled weights above all, stays where it is."""

_SPARE = 1 << 30
"""Bytes of the disk that are left free."""


def staged(config: PoolConfig, contents: Mapping[str, str], stage: Path) -> PoolConfig:
    """The same pool in local folders, which are made now if they are not there.

    Args:
        config: where the models are.
        contents: what they hold, `ModelPool.contents` of whoever wants them; names the copies.
        stage: folder of all copies, on a disk of this machine; nothing is written elsewhere.

    Raises:
        DiskError: the disk has no room, or refuses to write.
        PoolError: a model cannot be read.
    """
    experts = {name: _copy(path, stage / contents[name], stage) for name, path in config.folders.items()}
    base = _copy(config.base, stage / contents["base"], stage)
    return config.model_copy(update={"base": base, "experts": experts})


def check_staged(pool: ModelPool, contents: Mapping[str, str]) -> None:
    """That copies hold what was wanted.

    Raises:
        PoolError: one does not.
    """
    for name, wanted in contents.items():
        if pool.contents[name] != wanted:
            raise PoolError(
                f"{pool.folder(name)}: expected a copy of {name!r} as the driver knows it; got other contents; remove "
                "this copy, make sure that all nodes see the same models, and run again"
            )


def _copy(source: Path, target: Path, stage: Path) -> Path:
    if target.parent != stage:
        raise PoolError(f"expected a copy inside {stage}; got {target}")
    try:
        with alone(stage / f".{target.name}.lock"):
            if not target.is_dir():
                _fill(source, target)
    except (DiskError, StoreError):
        if not target.is_dir():  # else another process was quicker, on a file system without locks
            raise
    except OSError as error:
        raise DiskError(
            f"{stage} (executor.stage): cannot be written ({error.strerror or error}); name a folder on this node's "
            "own disk, or leave it out"
        ) from error
    return target


def _fill(source: Path, target: Path) -> None:
    try:
        files = [file for file in sorted(source.iterdir()) if file.is_file() and file.suffix in _SUFFIXES]
        needed = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise unreadable(source, error) from error
    if (free := shutil.disk_usage(target.parent).free) < needed + _SPARE:
        raise DiskError(
            f"{target.parent} (executor.stage): expected room for {size(needed)} of {source} and {size(_SPARE)} to "
            f"spare; got {size(free)}; remove copies that no run uses, or name another disk; then run again to go on"
        )
    with complete_or_absent(target) as draft:
        for file in files:
            shutil.copyfile(file, draft / file.name)
            (draft / file.name).chmod(0o444)
