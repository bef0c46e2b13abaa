"""Task vectors in 8 bits: an approximation that is good enough to steer a search, at a quarter to half of the bytes.

Blocks of 128 elements share a scale, `max |x| / 127` (symmetric, round to nearest): an element is off by half a scale
at most, and zeros stay zero. Kept by content like other facts about a pool, so that workers of a node share one copy.

Legend: `x = theta_source - theta_base`, formed in fp32, flattened; `n` elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from evomerge.merging import prepared
from evomerge.merging.footprint import QUANTUM
from evomerge.merging.statistics import chunks

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool

__all__ = ["Quantized", "int8_delta"]


@final
@dataclass(frozen=True, slots=True)
class Quantized:
    """One weight, flattened, as its base and an approximate change; a slice is computed when it is asked for.

    Attributes:
        base: the base's values `[n]`, as stored.
        levels: int8 `[blocks, 128]`; what lies beyond the last element is zero.
        scales: fp32 `[blocks]`.
    """

    base: torch.Tensor
    levels: torch.Tensor
    scales: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Of slices: fp32."""
        return torch.float32

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, part: slice) -> torch.Tensor:
        """`theta_0 + scale * level` of a run of elements, fp32."""
        start, stop, _ = part.indices(len(self))
        first, last = start // QUANTUM, -(-stop // QUANTUM)
        changes = self.levels[first:last].float().mul_(self.scales[first:last, None]).view(-1)
        return changes[start - first * QUANTUM :][: stop - start].add_(self.base[start:stop])


def int8_delta(pool: ModelPool, source: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and scales of one source's change of one weight from the pool's base, as in `Quantized`.

    Computed once per pool; do not write to them.
    """
    levels, scales = prepared.arrays(
        pool, "int8 deltas", (pool.base, source), (name,), lambda: _quantize(pool, source, name)
    )
    return torch.from_numpy(levels), torch.from_numpy(scales)


def _quantize(pool: ModelPool, source: str, name: str) -> prepared.Arrays:
    levels, scales = [], []
    for theta, base in zip(chunks(pool, source, name), chunks(pool, pool.base, name), strict=True):
        x = torch.zeros(-(-len(base) // QUANTUM) * QUANTUM)
        torch.sub(theta.float(), base.float(), out=x[: len(base)])
        blocks = x.view(-1, QUANTUM)
        scale = blocks.abs().amax(1) / 127
        levels.append((blocks / scale.where(scale > 0, 1.0)[:, None]).round_().to(torch.int8))
        scales.append(scale)
    return torch.cat(levels).numpy(), torch.cat(scales).numpy()
