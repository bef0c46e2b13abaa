"""The user's cache folder: small facts about model files, room for larger entries, and what goes when it is full.

Only a cache: what cannot be read or written there is computed again. Knows nothing of what is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, Fault

__all__ = ["LIMIT", "entry_of", "folder_of", "make_room", "remember", "remembered", "size_of", "touch"]

LIMIT = 64 << 30
"""Bytes that a kind of large entries may take; what was not used for longest goes first (see `make_room`)."""


def folder_of(kind: str) -> Path:
    """Where facts of a kind are kept: a folder of `$EVOMERGE_CACHE`, or of `~/.cache/evomerge`.

    Raises:
        ConfigError: neither is there: the user has no home.
    """
    root = os.environ.get("EVOMERGE_CACHE")
    try:
        return (Path(root) if root else Path.home() / ".cache" / "evomerge") / kind
    except RuntimeError as error:
        message = f"expected a folder for facts about models; got no home folder ({error}); set it to a folder"
        raise ConfigError("the environment", [Fault(path="EVOMERGE_CACHE", message=message)]) from error


def entry_of(kind: str, key: list[Any], suffix: str) -> Path:
    """The file of a key: plain data that changes whenever the facts may."""
    return folder_of(kind) / f"{hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()}{suffix}"


def remembered(kind: str, key: list[Any]) -> dict[str, Any] | None:
    """The facts that were kept under a key; None if there are none that can be read.

    Args:
        kind: what they are facts of; a folder of the cache.
        key: plain data that changes whenever the facts may.
    """
    try:
        entry = json.loads(entry_of(kind, key, ".json").read_text(encoding="utf-8"))
        return entry if entry.pop("key") == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(kind: str, key: list[Any], facts: Mapping[str, Any]) -> None:
    """Keep facts, as plain data, under a key."""
    entry = entry_of(kind, key, ".json")
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        draft = entry.with_suffix(f".{secrets.token_hex(4)}.tmp")
        draft.write_text(json.dumps({"key": key, **facts}), encoding="utf-8")
        draft.replace(entry)


@lru_cache(maxsize=8)
def make_room(folder: Path) -> None:
    """Remove what was not used for longest until the rest is within the limit; processes keep what they have mapped.

    Done once per process, when it begins to add to a folder, so that it never drives out what it added itself. Locks,
    and what is being written, stay.
    """
    entries = []
    for entry in folder.iterdir():
        if not entry.name.startswith(".") and entry.suffix != ".lock":
            with suppress(FileNotFoundError):  # another process makes room, too
                entries.append((entry.stat().st_mtime, size_of(entry), entry))
    excess = sum(size for _, size, _ in entries) - LIMIT
    for _, size, entry in sorted(entries):
        if excess > 0:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
            excess -= size


def touch(entry: Path) -> None:
    """Take note that an entry is used."""
    with suppress(OSError):
        os.utime(entry)


def size_of(entry: Path) -> int:
    """Bytes of a file, or of the files in a folder; 0 if it is not there."""
    files = [file for file in entry.rglob("*") if file.is_file()] if entry.is_dir() else [entry]
    return sum(file.stat().st_size for file in files if file.exists())
