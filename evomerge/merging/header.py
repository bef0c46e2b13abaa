"""The head of a safetensors file, for writers who stream: what stands where, before the tensors come.

Knows nothing of tensors themselves, nor of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.merging.checkpoint import DTYPES

__all__ = ["Slot", "header_of"]

_CODES: Mapping[str, str] = {name: code for code, name in DTYPES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where one tensor goes: `shape` and `dtype` as written, `start` and `stop` in bytes after its file's header."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    stop: int


def header_of(slots: Iterable[Slot], length: int = 0) -> bytes:
    """The JSON's length in 8 bytes, then the JSON, padded to a multiple of 8.

    Args:
        slots: the tensors of one file, in the order of their bytes.
        length: least number of bytes in all.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for slot in slots:
        span = [slot.start, slot.stop]
        entries[slot.name] = {"dtype": _CODES[slot.dtype], "shape": [*slot.shape], "data_offsets": span}
    text = json.dumps(entries, separators=(",", ":")).encode().ljust(length - 8)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
