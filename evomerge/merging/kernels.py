"""The arithmetic of plans: one block of one tensor at a time, in fp32, on scratch memory that is used again.

Knows nothing of models, dtypes of results, or where results go.

Legend: `n` elements of the block, `K` terms; scratch is fp32 of shape `[2 K + 4, n]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from evomerge.merging import keeps
from evomerge.merging.factors import Factors
from evomerge.merging.keep_rules import Trim
from evomerge.merging.plan import Damping, Delta, Linear, Term, Vote
from evomerge.merging.selection import variance

__all__ = ["Block", "Tally", "amplified", "ballot", "damped", "delta", "finished", "linear", "shifted", "vote"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A run of elements.

    Attributes:
        start: index of the first element in the flattened tensor.
        inputs: stored values by source, each `[n]`, of any float dtype.
        scratch: memory to compute in.
        facts: by source, what is to know of the whole tensor (see `evomerge.merging.facts`).
        damping, gain, shift: of the tensor.
    """

    start: int
    inputs: Mapping[str, torch.Tensor]
    scratch: torch.Tensor
    facts: Mapping[str, torch.Tensor]
    damping: Damping | None = None
    gain: float = 1.0
    shift: float = 0.0


@dataclass(slots=True)
class Tally:
    """What an election over a whole tensor came to, added up over its blocks.

    Attributes:
        majority: elements that elected + minus elements that elected -.
        cancelled: where blocks start in which ballots that were not zero cancelled exactly.
    """

    majority: float = 0.0
    cancelled: list[int] = field(default_factory=list)


def linear(kernel: Linear, block: Block) -> torch.Tensor:
    """One block of a `Linear`, in scratch memory.

    Each product is added with one rounding, as mergekit does it: whole weights that nearly cancel show the difference.
    """
    total, other = block.scratch[0].zero_(), block.scratch[1]
    for term in kernel.terms:
        values = block.inputs[term.source]
        if term.factors is not None:
            values = _scaled(other.copy_(values), term.factors, block.start)
        total.add_(values, alpha=term.weight)
    return total if kernel.divisor == 1 else total.div_(kernel.divisor)


def delta(kernel: Delta, block: Block) -> torch.Tensor:
    """One block of a `Delta`, in scratch memory."""
    base, total, other = block.scratch[:3]
    base.copy_(block.inputs[kernel.base])
    total.zero_()
    for term in kernel.terms:
        total.add_(ballot(term, block, base, other))
    if kernel.divisor != 1:
        total.div_(kernel.divisor)
    return shifted(base, total, kernel.scale)


def vote(kernel: Vote, block: Block, *, zero_sign: int = 1, tally: Tally | None = None) -> torch.Tensor:
    """One block of a `Vote`, in scratch memory.

    Args:
        kernel: what to compute.
        block: of which elements.
        zero_sign: what is elected where the ballots cancel, 1 or -1.
        tally: what the election came to is added here.
    """
    count = len(kernel.terms)
    base, total, signs, divisor = block.scratch[:4]
    ballots, spare = block.scratch[4 : 4 + count], block.scratch[4 + count : 4 + 2 * count]
    base.copy_(block.inputs[kernel.base])
    for term, out in zip(kernel.terms, ballots, strict=True):
        ballot(term, block, base, out)
    if kernel.select is not None:
        _select(kernel.select, block.start, ballots, spare, total)
    _fold(ballots, total)
    _signs(total, zero_sign, signs)
    ballots.mul_(signs).relu_()  # what agrees with the election, as magnitudes; the rest is zero
    if tally is not None:
        _count(tally, block.start, total, ballots, spare)
    if any(kernel.shares):
        torch.sign(ballots, out=spare).mul_(_column(kernel.shares, total))
        _fold(spare, divisor)
        if kernel.floor:
            divisor.clamp_(min=kernel.floor)
        divisor.add_(torch.eq(divisor, 0, out=total))
    if any(gain != 1 for gain in kernel.gains):
        ballots.mul_(_column(kernel.gains, total))
    _fold(ballots, total)
    if any(kernel.shares):
        total.div_(divisor)
    return shifted(base, total.mul_(signs), kernel.scale)


def ballot(term: Term, block: Block, base: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`weight * keep(theta - base)`. Multiplied on its own, never fused into a sum: executors then agree to the bit."""
    kept(term, block, base, out)
    return out if term.weight == 1 else out.mul_(term.weight)


def kept(term: Term, block: Block, base: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`factors * keep(theta - base)`."""
    out.copy_(block.inputs[term.source]).sub_(base)  # faster than one subtraction of two dtypes
    keeps.apply(term, block.start, out, block.facts)
    if term.factors is not None:
        _scaled(out, term.factors, block.start)
    return out


def _scaled(values: torch.Tensor, factors: Factors, start: int) -> torch.Tensor:
    return values.mul_(torch.from_numpy(factors.within(start, len(values))).to(values.device))


def damped(values: torch.Tensor, block: Block) -> torch.Tensor:
    """`theta_0 + factors * (values - theta_0)`, in place of the values; the values as they are without damping."""
    if block.damping is None:
        return values
    base = block.inputs[block.damping.base].float()
    return _scaled(values.sub_(base), block.damping.factors, block.start).add_(base)


def amplified(values: torch.Tensor, gain: float, shift: float) -> torch.Tensor:
    """`gain * values + shift`, in place of the values."""
    values = values if gain == 1 else values.mul_(gain)
    return values if shift == 0 else values.add_(shift)


def finished(values: torch.Tensor, block: Block) -> torch.Tensor:
    """What is stored of one block: the kernel's values, damped and amplified."""
    return amplified(damped(values, block), block.gain, block.shift)


def _count(tally: Tally, start: int, total: torch.Tensor, agreeing: torch.Tensor, spare: torch.Tensor) -> None:
    """Add one block to the tally."""
    sums, where = spare[:2]
    tally.majority += float(torch.sign(total, out=sums).sum())
    _fold(agreeing, sums)
    if float(sums.mul_(torch.eq(total, 0, out=where)).sum()):
        tally.cancelled.append(start)


def _select(rule: Trim, start: int, ballots: torch.Tensor, spare: torch.Tensor, spread: torch.Tensor) -> None:
    """Zero the ballots where their variance is not among the largest."""
    keeps.trim(rule, start, variance(ballots, spare, spread))
    ballots.mul_(spread != 0)


def _signs(total: torch.Tensor, zero_sign: int, out: torch.Tensor) -> None:
    """Signs of sums, 1 or -1."""
    compare = torch.ge if zero_sign > 0 else torch.gt
    compare(total, 0, out=out).mul_(2.0).sub_(1.0)


def _fold(rows: torch.Tensor, out: torch.Tensor) -> None:
    """Sum of `[K, n]` over K >= 2, strictly in order."""
    torch.add(rows[0], rows[1], out=out)
    for row in rows[2:]:
        out.add_(row)


def shifted(base: torch.Tensor, change: torch.Tensor, scale: float) -> torch.Tensor:
    """`base + scale * change`, in place of the change."""
    return (change if scale == 1 else change.mul_(scale)).add_(base)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return like.new_tensor(values).unsqueeze(1)
