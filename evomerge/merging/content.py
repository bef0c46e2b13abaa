"""One pass over every byte of a weight file: its digest, and how many weights are not finite.

Needs no torch: NaN and infinity are told by their exponent bits. Results are cached per file, keyed by path, size,
modification time and inode, so that a file is read once however often its pool is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evomerge.errors import PoolError
from evomerge.merging.cache import remember, remembered
from evomerge.merging.checkpoint import TensorInfo, read_header
from evomerge.merging.small_files import unreadable

__all__ = ["Content", "scan"]

_CHUNK = 1 << 22
"""Bytes read at a time: large enough to amortise calls, small enough to stay in cache with its scratch."""

_EXPONENT: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "bfloat16": (np.uint16, 0x7F80),
    "float16": (np.uint16, 0x7C00),
    "float32": (np.uint32, 0x7F800000),
}
"""For each dtype, the integer that holds its bits and the mask of its exponent: all ones in NaN and infinity alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """What a weight file holds.

    Attributes:
        digest: 32 hexadecimal digits over every byte.
        nonfinite: number of NaN or infinite weights, for the tensors that have any.
    """

    digest: str
    nonfinite: Mapping[str, int]


def scan(file: Path) -> Content:
    """Read a safetensors file once, or remember what an earlier reading found.

    Raises:
        PoolError: the file cannot be read, or is garbled.
    """
    try:
        status = file.stat()
    except OSError as error:
        raise unreadable(file, error) from error
    key = [str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    content = _recalled(remembered("content", key))
    if content is None:
        content = _read(file)
        remember("content", key, asdict(content))
    return content


def _recalled(facts: Mapping[str, Any] | None) -> Content | None:
    """What the cache holds; None if there is nothing, or nothing that can be trusted."""
    try:
        counts = {str(name): int(count) for name, count in facts["nonfinite"].items()} if facts else {}
        return Content(digest=str(facts["digest"]), nonfinite=counts) if facts else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _read(file: Path) -> Content:
    tensors = read_header(file)
    hasher, nonfinite = hashlib.blake2b(digest_size=16), {}
    try:
        with file.open("rb") as stream:
            hasher.update(stream.read(tensors[0].start if tensors else -1))
            for tensor in tensors:
                count = 0
                for chunk in _chunks(stream, tensor):
                    hasher.update(chunk)
                    count += _count_nonfinite(chunk, tensor.dtype)
                if count:
                    nonfinite[tensor.name] = count
    except OSError as error:
        raise unreadable(file, error) from error
    return Content(digest=hasher.hexdigest(), nonfinite=nonfinite)


def _chunks(stream: BinaryIO, tensor: TensorInfo) -> Iterator[bytes]:
    for start in range(tensor.start, tensor.stop, _CHUNK):
        size = min(_CHUNK, tensor.stop - start)
        chunk = stream.read(size)
        if len(chunk) != size:
            raise PoolError(f"{tensor.file}: truncated while it was read; let the copy finish and try again")
        yield chunk


def _count_nonfinite(chunk: bytes, dtype: str) -> int:
    if dtype not in _EXPONENT:
        return 0
    bits, mask = _EXPONENT[dtype]
    exponents = np.frombuffer(chunk, dtype=bits) & bits(mask)
    return int(np.count_nonzero(exponents == mask))
