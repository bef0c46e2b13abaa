"""Small facts about model files, kept in the user's cache folder so that no file is read twice for them.

Only a cache: what cannot be read or written there is computed again. Knows nothing of what the facts are.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["entry_of", "folder_of", "remember", "remembered"]


def folder_of(kind: str) -> Path:
    """Where facts of a kind are kept: a folder of `$EVOMERGE_CACHE`, or of `~/.cache/evomerge`."""
    root = os.environ.get("EVOMERGE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "evomerge") / kind


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
