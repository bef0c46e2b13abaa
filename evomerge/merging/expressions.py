"""The arithmetic of plans as pure expressions over a run of elements, for a compiler to make one pass of each.

They do what `evomerge.merging.kernels`, `contests` and `keeps` do, operation by operation and in the same order: both
give the same numbers. All that differs between candidates comes in as tensors, so that new numbers need no new
compilation. Nothing here is tied to a kind of device. Knows nothing of plans or compilers.

Legend: `n` elements, `K` sources, `theta_k` their weights, `x_k = theta_k - theta_0` in fp32, `y_k` their ballots;
`numbers` fp32 `[K + 1, 8]` and `ties` int64 `[K, 2]`, with columns as named below; row K is what the sources share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging import masks

__all__ = [
    "DIVISOR",
    "EXTRA",
    "FLOOR",
    "GAIN",
    "GRID",
    "RULE",
    "SCALE",
    "SHARE",
    "WEIGHT",
    "banded",
    "clipped",
    "consensus",
    "delta",
    "dropped",
    "linear",
    "on_grid",
    "overlap",
    "pruned",
    "rounded",
    "table_levels",
    "tallied_vote",
    "trimmed",
    "vote",
    "winner",
]

WEIGHT, GAIN, SHARE, RULE = range(4)
"""Of a source; a consensus has its cut for a gain. The numbers of its rule begin at `RULE`."""

GRID = GAIN
"""Of a source whose magnitudes are summed (see `on_grid`)."""

DIVISOR, SCALE, EXTRA, FLOOR = range(4)
"""What sources share; what `EXTRA` and `FLOOR` are, each kernel tells."""

FP16_MAX = 65504.0

Rows = Sequence[torch.Tensor]


def linear(thetas: Rows, numbers: torch.Tensor) -> torch.Tensor:
    """`sum_k weight_k theta_k / divisor`; every product is added with one rounding, if the compiler may contract.

    The clamp does nothing but keep it from taking the first product for the one to be added.
    """
    total = (numbers[0, WEIGHT] * thetas[0].float()).clamp(min=-torch.finfo(torch.float32).max)
    for k, theta in enumerate(thetas[1:], start=1):
        total = torch.addcmul(total, theta.float(), numbers[k, WEIGHT])
    return total / numbers[-1, DIVISOR]


def delta(base: torch.Tensor, ballots: Rows, numbers: torch.Tensor) -> torch.Tensor:
    """`theta_0 + scale * sum_k y_k / divisor`."""
    return _shifted(base, _fold(ballots) / numbers[-1, DIVISOR], numbers)


def vote(base: torch.Tensor, ballots: Rows, numbers: torch.Tensor) -> torch.Tensor:
    """A `Vote` that elects + where ballots cancel; `FLOOR` is the least divisor."""
    signs = torch.where(_fold(ballots) >= 0, 1.0, -1.0)
    return _shifted(base, _agreed([ballot * signs for ballot in ballots], numbers) * signs, numbers)


def tallied_vote(base: torch.Tensor, ballots: Rows, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A `Vote` that elects `EXTRA`, 1 or -1, where ballots cancel; and the sign of the sum of the ballots."""
    total = _fold(ballots)
    signs = torch.where(total > 0, 1.0, torch.where(total < 0, -1.0, numbers[-1, EXTRA]))
    merged = _shifted(base, _agreed([ballot * signs for ballot in ballots], numbers) * signs, numbers)
    return merged, torch.where(total == 0, 0.0, signs)


def _agreed(ballots: Rows, numbers: torch.Tensor) -> torch.Tensor:
    """What is merged of the ballots above zero."""
    agreeing = [ballot.relu() for ballot in ballots]
    divisor = _fold([torch.where(y > 0, numbers[k, SHARE], 0.0) for k, y in enumerate(agreeing)])
    divisor = torch.maximum(divisor, numbers[-1, FLOOR])
    divisor = divisor + (divisor == 0)
    return _fold([numbers[k, GAIN] * y for k, y in enumerate(agreeing)]) / divisor


def consensus(base: torch.Tensor, ballots: Rows, numbers: torch.Tensor) -> torch.Tensor:
    """A `Consensus`; `EXTRA` is how many sources must matter."""
    total = _fold(ballots)
    matters = [ballot.abs() > (total - ballot).abs() * numbers[k, GAIN] for k, ballot in enumerate(ballots)]
    enough = _fold([matter.float() for matter in matters]) >= numbers[-1, EXTRA]
    return _shifted(base, total * enough, numbers)


def winner(base: torch.Tensor, ballots: Rows, numbers: torch.Tensor) -> torch.Tensor:
    """A `Winner` by magnitude."""
    best = highest = torch.zeros_like(base)
    for ballot in ballots:
        best = torch.where(ballot.abs() > highest, ballot, best)
        highest = torch.maximum(ballot.abs(), highest)
    return _shifted(base, best, numbers)


def overlap(base: torch.Tensor, ballots: Rows, numbers: torch.Tensor) -> torch.Tensor:
    """An `Overlap`; `EXTRA` is its epsilon."""
    active = [ballot.abs() > numbers[-1, EXTRA] for ballot in ballots]
    count = _fold([here.float() for here in active])
    changes = [ballot * here for ballot, here in zip(ballots, active, strict=True)]
    parts = [torch.where(count > 1, x / count, x * numbers[k, GAIN]) for k, x in enumerate(changes)]
    return _fold(parts) + base


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values in a dtype, within fp16's range if that is it."""
    return (values.clamp(-FP16_MAX, FP16_MAX) if dtype == torch.float16 else values).to(dtype)


def trimmed(x: torch.Tensor, numbers: torch.Tensor, ties: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """A `Trim`; numbers: largest magnitude zeroed up to the last tie, and after it; tie: its index."""
    return _trim(x, numbers[0], numbers[1], ties[0], index)


def banded(x: torch.Tensor, numbers: torch.Tensor, ties: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """A `Band`; numbers and ties: of the inner trim, then of the outer."""
    inner = _trim(x, numbers[0], numbers[1], ties[0], index)
    return inner - _trim(x, numbers[2], numbers[3], ties[1], index)


def clipped(x: torch.Tensor, numbers: torch.Tensor, _ties: torch.Tensor, _index: torch.Tensor) -> torch.Tensor:
    """A `Clip`; number: its limit."""
    return torch.minimum(torch.maximum(x, -numbers[0]), numbers[0])


def dropped(x: torch.Tensor, numbers: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A `Drop`; number: from `masks.limit`; then what `masks.windows` gives."""
    return x * (masks.draws(one, other) < numbers[0])


def pruned(
    x: torch.Tensor,
    numbers: torch.Tensor,
    one: torch.Tensor,
    other: torch.Tensor,
    levels: torch.Tensor,
    *,
    inverse: bool,
) -> torch.Tensor:
    """A `Prune`; numbers: from `masks.ramp`; then what `masks.windows` gives."""
    limits = masks.level_limits(numbers[0], numbers[1], levels)
    kept = masks.draws(one, other) < limits
    return x * (torch.where(kept, 1.0 / limits, 0.0) if inverse else kept)


def table_levels(table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Levels of changes among those of their tensor, from a table `[2^15]` (see `evomerge.merging.ranks`)."""
    return table[x.abs().view(torch.int32) >> 16]


def on_grid(magnitudes: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Magnitudes rounded to multiples of some 2^q, in fp64: few enough bits for sums that have no rounding error.

    Args:
        magnitudes: fp32, below `2^(q + 32)`.
        grid: fp32, `1.5 * 2^(q + 12)`, 2^-40 of the numbers whose neighbours are 2^q apart.
    """
    far = grid.double() * 2.0**40
    return (magnitudes.double() + far) - far


def _trim(
    x: torch.Tensor, early: torch.Tensor, late: torch.Tensor, tie: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    largest_zeroed = torch.where(index.int() <= tie.int(), early, late)
    return torch.where(x.abs() <= largest_zeroed, 0.0, x)


def _shifted(base: torch.Tensor, change: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return change * numbers[-1, SCALE] + base


def _fold(rows: Rows) -> torch.Tensor:
    """Sum, strictly in order."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total
