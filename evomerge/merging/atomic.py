"""Folders that appear whole or not at all, and writers that wait for each other.

All is written in a hidden folder beside the target and renamed at the very end. A writer that was killed leaves its
hidden folder behind; the next one with the same target removes it. Knows nothing of what is written.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evomerge.errors import DiskError, StoreError

__all__ = ["alone", "complete_or_absent"]


@contextmanager
def complete_or_absent(out: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `out` if all goes well and vanishes if not.

    Args:
        out: the new folder; its parents are made as needed.

    Raises:
        StoreError: `out` exists.
        DiskError: the disk refused a write; nothing is left behind.
    """
    if out.exists():
        raise StoreError(f"{out}: expected a folder that does not exist yet; choose another, or remove this one")
    draft = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    try:
        draft.mkdir(parents=True)
        with _opened(draft) as descriptor:
            with suppress(OSError):  # where a file system has no locks, nobody removes anybody's folder
                _hold(descriptor)
            _remove_abandoned(out)
            yield draft
            _sync(*draft.iterdir(), draft)
            draft.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise DiskError(
            f"{out}: expected to write a model; got {error.strerror or error}; nothing was kept: "
            "check free space and permissions, and try again"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Wait until no other process is inside with the same file; where a file system has no locks, do not wait.

    Args:
        file: stands for what is written; made if it is not there, and left.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _remove_abandoned(out: Path) -> None:
    """Remove what killed writers of the same target left; a writer that lives holds its folder."""
    draft = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{8}}\.partial")
    for folder in out.parent.iterdir():
        if draft.fullmatch(folder.name):
            with suppress(OSError), _opened(folder) as descriptor:
                _hold(descriptor)
                shutil.rmtree(folder)


def _hold(descriptor: int) -> None:
    """Hold a folder until it is closed; the system lets go of it even when the process is killed.

    Raises:
        OSError: someone else holds it, or the file system has no locks.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(*paths: Path) -> None:
    """Make sure that files, or a folder's list of names, survive a power cut."""
    for path in paths:
        with _opened(path) as descriptor:
            os.fsync(descriptor)
