"""Variants: experts whose task vectors were transformed, computed once per pool and then read like any other model.

A variant holds `theta_0 + C_k` in fp32, `C_k` being what the transform makes of the task vector `theta_k - theta_0`;
tensors that come out as the expert's own are not stored twice. So differences that operators form in fp32 are `C_k` up
to fp32's rounding of the sum, as for LoRA adapters, and a variant is read as fast as a model. The cache holds a folder
per pool and transform, with a file per expert. It appears whole or not at all; whoever comes while another process
builds it waits. When all take too much room, those go that were not used for longest. Knows nothing of what transforms
compute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from evomerge.errors import DiskError, MergeError, PoolError, StoreError
from evomerge.merging.atomic import alone, complete_or_absent
from evomerge.merging.cache import entry_of, make_room, size_of, touch
from evomerge.merging.checkpoint import Checkpoint, read_header
from evomerge.merging.header import Slot, header_of
from evomerge.recipe.transform_table import NONE, VARIANT_MARK, transform_of

if TYPE_CHECKING:
    import torch

    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.merging.transforms.facts import Facts

__all__ = ["VARIANTS", "Built", "content_of", "disk_bytes", "facts_of", "prepare", "variant_tensor"]

VARIANTS = "variants"
"""The folder of the cache."""

_VERSION = 2
"""Raised whenever a transform would come out differently, or is laid out differently."""

_ITEM_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """One transform of all experts, built.

    Attributes:
        transform: its spelling.
        folder: where it is kept.
        seconds: wall time that it took.
        bytes: on disk.
    """

    transform: str
    folder: Path
    seconds: float
    bytes: int

    def __str__(self) -> str:
        size = f"{self.bytes / 2**20:,.1f} MiB in {self.folder}"
        return f"transform {self.transform} of all experts: built in {self.seconds:.1f} s, {size}"


def prepare(pool: ModelPool, transforms: Iterable[str]) -> Iterator[Built]:
    """Build the variants of all experts that are not in the cache yet.

    Args:
        pool: the models.
        transforms: as spelled by recipes.

    Yields:
        One record after each transform that had to be built.

    Raises:
        DiskError: the cache cannot be written to; nothing that looks complete is left there.
        MergeError: a transform lacks something that it needs.
    """
    for transform in transforms:
        folder = _folder(pool, transform)
        started = time.perf_counter()
        if transform != NONE and _build(pool, transform, folder):
            seconds = time.perf_counter() - started
            yield Built(transform=transform, folder=folder, seconds=seconds, bytes=size_of(folder))
        touch(folder)


def disk_bytes(pool: ModelPool, transforms: Iterable[str]) -> int:
    """The most that the variants of all experts take in the cache, those that are there already included."""
    elements = sum(math.prod(spec.shape) for spec in pool.specs)
    wanted = [transform for transform in transforms if transform != NONE]
    return len(wanted) * len(pool.experts) * elements * _ITEM_BYTES


def variant_tensor(pool: ModelPool, variant: str, name: str) -> torch.Tensor:
    """One tensor of one variant, built with all others of its transform if need be; do not write to it.

    Args:
        pool: the models.
        variant: for example `math~star:40`.
        name: the name of a spec.

    Raises:
        KeyError: no such expert or tensor.
        ValueError: no such transform.
        DiskError, MergeError: see `prepare`.
    """
    expert, transform = _parts(pool, variant)
    folder = _folder(pool, transform)
    _build(pool, transform, folder)
    model = _opened(folder / _file(expert))
    return model.tensor(name) if name in model.tensors else pool.tensor(expert, name)


def content_of(pool: ModelPool, model: str) -> str:
    """Hexadecimal digits over all that decides the tensors of a model or variant.

    Raises:
        KeyError: no such model.
        ValueError: no such transform.
    """
    if model in pool.contents:
        return pool.contents[model]
    expert, transform = _parts(pool, model)
    return f"{expert}{VARIANT_MARK}{_folder(pool, transform).name}"


def facts_of(pool: ModelPool) -> Facts:
    """What is known of the experts beside their weights."""
    from evomerge.merging.calibrated import CalibratedFacts

    return CalibratedFacts(pool)


def _parts(pool: ModelPool, variant: str) -> tuple[str, str]:
    """The expert of a variant, and its transform."""
    expert, mark, transform = variant.partition(VARIANT_MARK)
    if not mark or expert not in pool.experts:
        raise KeyError(variant)
    return expert, transform_of(transform)[1]


def _folder(pool: ModelPool, transform: str) -> Path:
    return entry_of(VARIANTS, [_VERSION, pool.digest, transform], "")


@lru_cache(maxsize=64)
def _opened(file: Path) -> Checkpoint:
    try:
        tensors = read_header(file)
    except PoolError as error:
        raise MergeError(f"{error}\nThis is a cache: remove the folder {file.parent}; it is built again") from error
    touch(file.parent)
    return Checkpoint(file.parent, {}, {tensor.name: tensor for tensor in tensors})


def _build(pool: ModelPool, transform: str, folder: Path) -> bool:
    """Make sure that a folder of variants is there; tell whether it had to be built."""
    if folder.is_dir():
        return False
    try:
        with alone(folder.with_suffix(".lock")):
            if folder.is_dir():  # someone else has built it meanwhile
                return False
            make_room(folder.parent)
            with complete_or_absent(folder) as draft:
                _write(pool, transform, draft)
    except (OSError, DiskError, StoreError) as error:
        if folder.is_dir():  # as above, on a file system without locks
            return False
        raise DiskError(
            f"{folder}: expected room for {disk_bytes(pool, [transform]) / 2**30:.2f} GiB, the experts as "
            f"{transform} makes them; got: {error.__cause__ or error}; free space there, or set EVOMERGE_CACHE to a "
            "folder on a larger disk"
        ) from error
    return True


def _write(pool: ModelPool, transform: str, draft: Path) -> None:
    from evomerge.merging.transforms import transformed

    with ExitStack() as stack:
        files = {expert: stack.enter_context(_opened_anew(draft / _file(expert), pool)) for expert in pool.experts}
        for name, changes in transformed(transform, pool, facts_of(pool)):
            base = pool.tensor(pool.base, name).float()
            for expert, change in changes.items():
                variant = base + change
                if not variant.equal(pool.tensor(expert, name).float()):
                    files[expert].add(name, variant)


def _file(expert: str) -> str:
    return f"{expert}.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Growing:
    """A safetensors file that tensors are added to: room for the largest header is left in front of them."""

    stream: IO[bytes]
    room: int
    slots: list[Slot] = field(default_factory=list)

    def add(self, name: str, values: torch.Tensor) -> None:
        """Append a tensor."""
        start = self.slots[-1].stop if self.slots else 0
        self.stream.write(values.contiguous().reshape(-1).numpy().data)
        self.slots.append(_slot(name, tuple(values.shape), start))

    def finish(self) -> None:
        """Write the header."""
        self.stream.seek(0)
        self.stream.write(header_of(self.slots, self.room))


@contextmanager
def _opened_anew(file: Path, pool: ModelPool) -> Iterator[_Growing]:
    with file.open("wb") as stream:
        room = len(header_of(_all_slots(pool.specs)))
        stream.seek(room)
        growing = _Growing(stream=stream, room=room)
        yield growing
        growing.finish()


def _all_slots(specs: Iterable[TensorSpec]) -> Iterator[Slot]:
    """Every tensor, where its offsets take most digits: behind all others."""
    specs = tuple(specs)
    end = _ITEM_BYTES * sum(math.prod(spec.shape) for spec in specs)
    return (_slot(spec.name, spec.shape, end) for spec in specs)


def _slot(name: str, shape: tuple[int, ...], start: int) -> Slot:
    stop = start + _ITEM_BYTES * math.prod(shape)
    return Slot(name=name, shape=shape, dtype="float32", file="", start=start, stop=stop)
