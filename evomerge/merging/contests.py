"""The arithmetic of plans where sources compete for single elements; like `evomerge.merging.kernels`, whose rules hold.

Legend: `n` elements of the block, `K` terms; scratch is fp32 of shape `[2 K + 4, n]`.
"""

from __future__ import annotations

import torch

from evomerge.merging import ranks
from evomerge.merging.kernels import Block, ballot, shifted
from evomerge.merging.plan import Consensus, Overlap, Term, Winner

__all__ = ["consensus", "overlap", "winner"]


def consensus(kernel: Consensus, block: Block) -> torch.Tensor:
    """One block of a `Consensus`, in scratch memory."""
    base, total, rest, mattering = block.scratch[:4]
    ballots = block.scratch[4 : 4 + len(kernel.terms)]
    base.copy_(block.inputs[kernel.base])
    total.zero_()
    for term, out in zip(kernel.terms, ballots, strict=True):
        total.add_(ballot(term, block, base, out))
    mattering.zero_()
    for cut, out in zip(kernel.cuts, ballots, strict=True):
        torch.sub(total, out, out=rest).abs_().mul_(cut)
        mattering.add_(torch.gt(out.abs_(), rest, out=out))
    return shifted(base, total.mul_(mattering >= kernel.least), kernel.scale)


def winner(kernel: Winner, block: Block) -> torch.Tensor:
    """One block of a `Winner`, in scratch memory."""
    base, best, highest, out, score = block.scratch[:5]
    base.copy_(block.inputs[kernel.base])
    best.zero_()
    highest.zero_()
    for term in kernel.terms:
        ballot(term, block, base, out)
        if kernel.by == "magnitude":
            torch.abs(out, out=score)
        else:
            _claim(term, block, base, out, score)
        torch.where(score > highest, out, best, out=best)
        torch.maximum(score, highest, out=highest)
    return shifted(base, best, kernel.scale)


def overlap(kernel: Overlap, block: Block) -> torch.Tensor:
    """One block of an `Overlap`, in scratch memory."""
    base, total, active, other = block.scratch[:4]
    changes = block.scratch[4 : 4 + len(kernel.terms)]
    base.copy_(block.inputs[kernel.base])
    active.zero_()
    for term, x in zip(kernel.terms, changes, strict=True):
        here = ballot(term, block, base, x).abs() > kernel.epsilon
        active.add_(here)
        x.mul_(here)
    total.zero_()
    several = active > 1
    for gain, x in zip(kernel.gains, changes, strict=True):
        torch.div(x, active, out=other)
        total.add_(torch.where(several, other, x.mul_(gain), out=other))
    return shifted(base, total, 1.0)


def _claim(term: Term, block: Block, base: torch.Tensor, kept: torch.Tensor, out: torch.Tensor) -> None:
    """One more than the level of a change where something is kept of it, else 0."""
    magnitudes = torch.sub(block.inputs[term.source], base, out=out).abs_()
    levels = ranks.levels(block.facts[term.source], "tensor", block.start, magnitudes)
    torch.mul(levels + 1, kept != 0, out=out)
