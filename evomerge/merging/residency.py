"""The models of a pool in the tier where they are kept, handed out tensor by tensor on the device that computes.

On a CPU this is the pool itself, and costs nothing. The tiers for other devices are written for CUDA and were never run
on a GPU. Knows nothing of how a tier is chosen (see `footprint`), nor of what tensors are read for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, final

import torch

from evomerge.merging.int8_deltas import Quantized, int8_delta
from evomerge.merging.plan import Copy, Core, Isotropic, Linear

if TYPE_CHECKING:
    from evomerge.merging.footprint import Tier
    from evomerge.merging.plan import TensorPlan
    from evomerge.merging.pool import ModelPool

__all__ = ["Residence"]


Key = tuple[str, str, bool]
"""Model, tensor, and whether the model's change in 8 bits is meant instead of the tensor."""

Part = tuple[torch.Tensor, ...]
"""A tensor; or levels and scales of a change."""


@final
@dataclass(kw_only=True)
class Residence:
    """A pool and where its tensors are kept.

    Attributes:
        pool: the models.
        tier: where base and experts are kept.
        device: that computes.
        deltas: the form in which experts are kept; what is read in the other form, and variants, are read from files.
        approximate: read changes in 8 bits; whole weights are exact all the same.
    """

    pool: ModelPool
    tier: Tier = "mapped"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    deltas: Literal["exact", "int8"] = "exact"
    approximate: bool = False
    _kept: dict[Key, Part] = field(default_factory=dict)
    _staged: dict[Key, Part] = field(default_factory=dict)
    _copies: Any = None

    def ahead(self, tensors: Sequence[TensorPlan]) -> Iterator[TensorPlan]:
        """The same tensors, the inputs of each at hand when it is yielded; a pinned one's successor is on its way."""
        if self.tier != "pinned":
            yield from tensors
            return
        if self._copies is None:
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        computing, done = torch.cuda.current_stream(self.device), None
        following = self._fetch(tensors[0], computing) if tensors else None
        for tensor, successor in zip(tensors, [*tensors[1:], None], strict=True):
            if done is not None:  # buffers for two tensors, and no more: the host must not run ahead
                done.synchronize()
            current, following = following, self._fetch(successor, computing) if successor else None
            if current is not None:
                self._staged, arrived = current
                computing.wait_event(arrived)
            yield tensor
            done = computing.record_event()
        self._staged = {}

    def inputs(self, tensor: TensorPlan) -> dict[str, torch.Tensor]:
        """What a kernel reads, by source, flattened and on the device.

        Where `approximate`, some are `Quantized`, which has of a tensor its length, device, dtype and slices.
        """
        parts = {source: self._part(self._key(source, tensor)) for source in tensor.sources}
        whole = {source: part[0].reshape(-1) for source, part in parts.items() if len(part) == 1}
        return {
            source: whole[source] if source in whole else cast("torch.Tensor", Quantized(whole[self.pool.base], *part))
            for source, part in parts.items()
        }

    def whole(self, tensor: TensorPlan, source: str) -> torch.Tensor:
        """All of one tensor of one model, exactly, on the device."""
        return self._part((source, tensor.origin, False))[0]

    def _fetch(self, tensor: TensorPlan, computing: Any) -> tuple[dict[Key, Part], Any]:
        """Start copying a tensor's inputs to the device; with them, the event that tells that they are there."""
        held = {key: self._pinned(key) for key in (self._key(source, tensor) for source in _whole_sources(tensor))}
        with torch.cuda.stream(self._copies):
            there = {key: self._moved(part) for key, part in held.items()}
            arrived = self._copies.record_event()
        for part in there.values():
            for piece in part:  # else its memory could be given away while kernels still read it
                piece.record_stream(computing)
        return there, arrived

    def _part(self, key: Key) -> Part:
        if key in self._staged:
            return self._staged[key]
        if key in self._kept and self.tier == "device":
            return self._kept[key]
        part = self._moved(self._read(key))
        if self.tier == "device" and self._is_counted(key):
            self._kept[key] = part
        return part

    def _pinned(self, key: Key) -> Part:
        """What is kept in page-locked memory; the rest as it is in files."""
        if key not in self._kept and self._is_counted(key):
            self._kept[key] = tuple(piece.pin_memory() for piece in self._read(key))
        return self._kept[key] if key in self._kept else self._read(key)

    def _key(self, source: str, tensor: TensorPlan) -> Key:
        base = self.pool.base
        whole = isinstance(tensor.kernel, Copy | Linear | Isotropic) or source == base or base not in tensor.sources
        return source, tensor.origin, self.approximate and not whole

    def _is_counted(self, key: Key) -> bool:
        """Whether the footprint of the tier has room for it."""
        source, _, approximate = key
        return source == self.pool.base or (source in self.pool.names and approximate == (self.deltas == "int8"))

    def _read(self, key: Key) -> Part:
        source, name, approximate = key
        return int8_delta(self.pool, source, name) if approximate else (self.pool.tensor(source, name),)

    def _moved(self, part: Part) -> Part:
        return tuple(piece.to(self.device, non_blocking=True) for piece in part)


def _whole_sources(tensor: TensorPlan) -> tuple[str, ...]:
    """The models whose tensors are read: in core space the base alone, for adapters are read as their factors."""
    return (tensor.kernel.base,) if isinstance(tensor.kernel, Core) else tensor.sources
