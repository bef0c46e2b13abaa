"""What is prepared of a pool: facts that no candidate changes, as arrays, computed once and kept.

In memory for the pool at hand, and on disk by the content of the models that a fact is about, where other workers and
later runs find it, whatever else their pool holds. Large entries are mapped, so that all processes of a node share one
copy. Whatever on disk is not whole is computed again. Knows nothing of what the facts are.

An entry: 8 bytes length of the header; the header, as JSON; every array, from a multiple of 64 bytes on; CRC-32 of all
this, in 8 bytes.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from evomerge.merging.cache import entry_of, folder_of, make_room, touch
from evomerge.merging.variants import content_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from evomerge.merging.pool import ModelPool

    Arrays = tuple[npt.NDArray[Any], ...]

__all__ = ["arrays", "folder", "once"]

T = TypeVar("T")

_KIND = "facts"
"""The folder of the cache."""

_VERSION = 2
"""Raised whenever a fact would come out differently, or is laid out differently."""

_WORTHWHILE = 1 << 15
"""Elements of a tensor below which computing a fact is no slower than reading it."""

_MAPPED = 1 << 16
"""Bytes from which on an entry is mapped."""

_SPARE = 1 << 30
"""Bytes of the disk that are left free."""


def folder() -> Path:
    """Where facts are kept. Nothing else is in there, and all of it can be computed again."""
    return folder_of(_KIND)


def arrays(
    pool: ModelPool, kind: str, models: tuple[str, ...], names: tuple[str, ...], make: Callable[[], Arrays]
) -> Arrays:
    """A fact about some tensors of some models: from memory, from disk, or made now and kept.

    Args:
        pool: the models.
        kind: what the fact is; different facts about the same tensors have different kinds.
        models: pool names, in the order in which the fact treats them.
        names: the tensors.
        make: computes it.

    Returns:
        Arrays that must not be written to; what `make` gave, in the same order, shapes and dtypes.
    """
    return once(pool, (kind, models, names), lambda: _from_disk(pool, kind, models, names, make))


def once(pool: ModelPool, key: Hashable, make: Callable[[], T]) -> T:
    """Anything about a pool that this process needs again: made when first asked for, then kept in memory."""
    known = _in_memory(pool.digest)
    if key not in known:
        known[key] = make()
    return cast("T", known[key])


@lru_cache(maxsize=2)  # a pool, and what core space makes of it
def _in_memory(digest: str) -> dict[Hashable, Any]:
    return {}


def _from_disk(
    pool: ModelPool, kind: str, models: tuple[str, ...], names: tuple[str, ...], make: Callable[[], Arrays]
) -> Arrays:
    if sum(pool.tensor(models[0], name).numel() for name in names) < _WORTHWHILE:
        return make()
    key = [_VERSION, kind, [content_of(pool, model) for model in models], list(names)]
    file = entry_of(_KIND, key, ".bin")
    found = _read(file, key)
    if found is None:
        _write(file, key, found := make())
        found = _read(file, key) or found  # mapped, so that it takes no memory of this process alone
    return found


def _read(file: Path, key: Sequence[Any]) -> Arrays | None:
    """The arrays of an entry; None if there is none, or if it is damaged."""
    try:
        content = _content(file)
        body = content[:-8]
        if zlib.crc32(body.data) != int(content[-8:].view(np.uint64)[0]):
            return None
        stop = 8 + int(body[:8].view(np.uint64)[0])
        header = json.loads(body[8:stop].tobytes())
        if header["key"] != key:
            return None
        found = _split(body, stop, header["arrays"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError):
        return None
    touch(file)
    return found


def _content(file: Path) -> npt.NDArray[np.uint8]:
    size = file.stat().st_size
    if size < _MAPPED:
        return np.fromfile(file, np.uint8)
    import torch

    content: npt.NDArray[np.uint8] = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8).numpy()
    return content  # numpy's own maps keep a file open each, and there may be thousands


def _split(body: npt.NDArray[np.uint8], stop: int, layout: Sequence[tuple[str, list[int]]]) -> Arrays:
    found = []
    for dtype, shape in layout:
        start = -(-stop // 64) * 64
        stop = start + np.dtype(dtype).itemsize * math.prod(shape)
        found.append(body[start:stop].view(dtype).reshape(shape))
    return tuple(found)


def _write(file: Path, key: Sequence[Any], facts: Arrays) -> None:
    """Keep an entry, whole or not at all; a disk that is full or cannot be written to is no fault."""
    pieces = list(_pieces(key, facts))
    check = reduce(lambda crc, piece: zlib.crc32(piece, crc), pieces, 0)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        make_room(file.parent)
        if shutil.disk_usage(file.parent).free < sum(map(len, pieces)) + _SPARE:
            return
        draft = file.with_suffix(f".{secrets.token_hex(4)}.tmp")
        try:
            with draft.open("wb") as out:
                out.writelines([*pieces, check.to_bytes(8, "little")])
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)


def _pieces(key: Sequence[Any], facts: Arrays) -> Iterator[bytes | memoryview]:
    header = json.dumps({"key": key, "arrays": [(fact.dtype.str, fact.shape) for fact in facts]}).encode()
    yield len(header).to_bytes(8, "little")
    yield header
    stop = 8 + len(header)
    for fact in facts:
        yield bytes(-stop % 64)
        yield np.ascontiguousarray(fact).reshape(-1).view(np.uint8).data
        stop += -stop % 64 + fact.nbytes
