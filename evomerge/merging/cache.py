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

__all__ = ["remember", "remembered"]


def remembered(kind: str, key: list[Any]) -> dict[str, Any] | None:
    """The facts that were kept under a key; None if there are none that can be read.

    Args:
        kind: what they are facts of; a folder of the cache.
        key: plain data that changes whenever the facts may.
    """
    try:
        entry = json.loads(_entry(kind, key).read_text(encoding="utf-8"))
        return entry if entry.pop("key") == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(kind: str, key: list[Any], facts: Mapping[str, Any]) -> None:
    """Keep facts, as plain data, under a key."""
    entry = _entry(kind, key)
    with suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        draft = entry.with_suffix(f".{secrets.token_hex(4)}.tmp")
        draft.write_text(json.dumps({"key": key, **facts}), encoding="utf-8")
        draft.replace(entry)


def _entry(kind: str, key: list[Any]) -> Path:
    """`$EVOMERGE_CACHE`, or `~/.cache/evomerge`, holds a folder per kind and a file per key."""
    root = os.environ.get("EVOMERGE_CACHE")
    folder = (Path(root) if root else Path.home() / ".cache" / "evomerge") / kind
    return folder / f"{hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()}.json"
