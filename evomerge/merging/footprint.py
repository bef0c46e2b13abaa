"""Where the models of a pool are kept while candidates are made, and how many bytes that takes. Pure arithmetic.

Three tiers, best first. `device`: base and experts lie in the memory of the worker's device beside the live model.
`pinned`: they lie in page-locked host memory of the worker and are streamed to the device, the next tensor while one is
merged. `mapped`: they stay in their files, which all processes of a node map and share; on a CPU there is no other.

Knows nothing of torch; whoever asks brings the sizes of the memories. No run on a GPU has checked these sums yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from evomerge.errors import ConfigError, Fault
from evomerge.merging.checkpoint import ITEM_BYTES
from evomerge.merging.layout import has_vocabulary_rows
from evomerge.merging.lora import Adapter
from evomerge.merging.vocabulary import Translated

if TYPE_CHECKING:
    from evomerge.merging.checkpoint import Model
    from evomerge.merging.pool import ModelPool, TensorSpec

__all__ = [
    "BLOCK",
    "DEVICE_BLOCK",
    "QUANTUM",
    "RESERVE",
    "Footprint",
    "Memory",
    "Needs",
    "Tier",
    "choose",
    "footprints",
    "needs_of",
    "size",
]

Tier = Literal["device", "pinned", "mapped"]

BLOCK = 1 << 17
"""Elements that a CPU computes at a time: the scratch of a few sources then stays in a core's cache."""

DEVICE_BLOCK = 1 << 23
"""Elements that another device computes at a time: so many that starting its kernels costs little."""

QUANTUM = 128
"""Elements that share the scale of an int8 delta."""

RESERVE = 4 << 30
"""Bytes of a device that are left to activations, logits, keys and values of a batch: a rule of thumb, for they grow
with the batch, the length of its texts and the vocabulary."""

_USABLE = 0.95
"""Share of a memory that may be planned with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Bytes that making candidates takes, wherever they lie.

    Attributes:
        live: the live model.
        held: base and experts, in the form in which they are read again and again.
        widest: what all models hold of the tensor of which they hold most.
        made: of host memory, for the tensor that takes most: weights that are in no file, but made anew whenever they
            are read, as adapters and other vocabularies need it.
        scratch: of the kernels, on a CPU and on another device.
    """

    live: int
    held: int
    widest: int
    made: int
    scratch: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes that there are.

    Attributes:
        device: of the device of one worker; None on a CPU.
        host: of the node.
        workers: that share the node.
    """

    device: int | None
    host: int
    workers: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What one worker takes in one tier; files that are mapped are not counted, the system keeps what fits.

    Attributes:
        device: bytes of the device's memory.
        host: bytes of the worker's own host memory.
    """

    tier: Tier
    device: int
    host: int

    def fits(self, memory: Memory) -> bool:
        """Whether every worker of a node can have that."""
        on_device = self.device <= _USABLE * memory.device if memory.device is not None else not self.device
        return on_device and self.host * memory.workers <= _USABLE * memory.host

    def __str__(self) -> str:
        parts = ((self.device, "on the device"), (self.host, "of host memory"))
        return f"{self.tier}: {', '.join(f'{size(amount)} {where}' for amount, where in parts if amount)}"


def needs_of(
    pool: ModelPool, live_dtype: str, deltas: Literal["exact", "int8"] = "exact", *, depth: int | None = None
) -> Needs:
    """The needs of a pool.

    Args:
        pool: base and experts.
        live_dtype: torch's name of the dtype of the live model.
        deltas: the form in which experts are held.
        depth: most layers of the live model; None for those of the pool.
    """
    stored = {name: {n: tensor.dtype for n, tensor in model.tensors.items()} for name, model in pool.models.items()}
    made = [[_made(model, spec, stored[name][spec.name]) for name, model in pool.models.items()] for spec in pool.specs]
    held = [_held(pool, spec, stored, deltas) for spec in pool.specs]
    rows = 2 * len(pool.names) + 4
    return Needs(
        live=math.ceil(_live_elements(pool, depth or pool.layers) * ITEM_BYTES[live_dtype]),
        held=sum(held),
        widest=max(held),
        made=max(sum(each) + max(each) for each in made),  # the base's values are widened beside the first result
        scratch=(4 * rows * BLOCK, 4 * rows * DEVICE_BLOCK),
    )


def _live_elements(pool: ModelPool, depth: int) -> float:
    """Weights of a model that is as deep as that, or as deep as the pool's."""
    inside = sum(math.prod(spec.shape) for spec in pool.specs if spec.layer is not None)
    outside = sum(math.prod(spec.shape) for spec in pool.specs if spec.layer is None)
    return outside + inside * max(depth / pool.layers, 1.0)


def footprints(needs: Needs, *, on_device: bool) -> tuple[Footprint, ...]:
    """The tiers that there are, best first."""
    if not on_device:
        return (Footprint(tier="mapped", device=0, host=needs.live + needs.scratch[0] + needs.made),)
    working = needs.live + needs.scratch[1] + RESERVE
    return (
        Footprint(tier="device", device=working + needs.held, host=needs.made),
        Footprint(tier="pinned", device=working + 2 * needs.widest, host=needs.held + needs.made),
        Footprint(tier="mapped", device=working + needs.widest, host=needs.made),
    )


def choose(tiers: Sequence[Footprint], memory: Memory, wanted: Tier | Literal["auto"] = "auto") -> Footprint:
    """The best tier that fits.

    Args:
        tiers: see `footprints`.
        memory: what there is.
        wanted: this tier or none; `auto` takes any.

    Raises:
        ConfigError: it does not fit, or a CPU has no such tier.
    """
    possible = [tier for tier in tiers if wanted in ("auto", tier.tier)]
    if fitting := [tier for tier in possible if tier.fits(memory)]:
        return fitting[0]
    if not possible:
        message = f"expected a GPU for {wanted!r}; got a CPU, on which models are mapped; write auto or mapped"
        raise ConfigError("engine", [Fault(path="$.engine.residency", message=message)])
    there = [] if memory.device is None else [f"{size(memory.device)} on the device"]
    there.append(f"{size(memory.host)} of host memory for {_workers(memory.workers)}")
    message = (
        f"expected memory for each worker: {'; or '.join(map(str, possible))}; got {', '.join(there)}; "
        "use fewer workers, a smaller engine.dtype, fewer experts, or a machine with more memory"
    )
    raise ConfigError("engine", [Fault(path="$.engine.residency", message=message)])


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def size(amount: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def _held(pool: ModelPool, spec: TensorSpec, stored: Mapping[str, Mapping[str, str]], deltas: str) -> int:
    """Bytes that all models hold of one tensor."""
    count, total = math.prod(spec.shape), 0
    for name, model in pool.models.items():
        if deltas == "int8" and name != pool.base:
            total += count + 4 * -(-count // QUANTUM)
        else:
            dtype = stored[name][spec.name]
            total += _made(model, spec, dtype) or count * ITEM_BYTES[dtype]
    return total


def _made(model: Model, spec: TensorSpec, stored: str) -> int:
    """Bytes of a tensor that is made anew whenever it is read: in fp32 if an adapter changes it; 0 if it is mapped."""
    own = model.model if isinstance(model, Translated) else model
    if isinstance(own, Adapter) and spec.name in own.factors:
        return 4 * math.prod(spec.shape)
    moved = isinstance(model, Translated) and has_vocabulary_rows(spec.name)
    return ITEM_BYTES[stored] * math.prod(spec.shape) if moved else 0
