"""All of a form of plans as one expression, for a compiler to make one pass of it.

Knows nothing of compilers, and of plans no more than their form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch

from evomerge.merging import expressions
from evomerge.merging.expressions import GRID, RULE, WEIGHT
from evomerge.merging.keep_rules import Band, Clip, Drop, Prune, Trim
from evomerge.merging.operands import Form, KeptL1
from evomerge.merging.plan import Consensus, Delta, Linear, Overlap, Vote, Winner

__all__ = ["fused"]

Call = Callable[..., Any]
Rows = Sequence[torch.Tensor]

_KERNELS: Mapping[type, Callable[..., Any]] = {
    Delta: expressions.delta,
    Vote: expressions.vote,
    Consensus: expressions.consensus,
    Winner: expressions.winner,
    Overlap: expressions.overlap,
}
_RULES: Mapping[type | None, Callable[..., torch.Tensor]] = {
    Trim: expressions.trimmed,
    Band: expressions.banded,
    Clip: expressions.clipped,
}


def fused(form: Form) -> Call:
    """All of a form as one expression."""
    if form.kernel is Linear:
        found: Any = _linear(form)
    else:
        found = _kept_l1(form) if form.kernel is KeptL1 else _competing(form)
    # a code object of its own: how often one is compiled anew is counted and limited
    return FunctionType(found.__code__.replace(), globals(), closure=found.__closure__)


def _linear(_: Form) -> Call:
    def linear(outs: Rows, numbers: torch.Tensor, _ties: torch.Tensor, values: Rows, _needs: Sequence[Rows]) -> None:
        outs[0].copy_(expressions.rounded(expressions.linear(values, numbers), outs[0].dtype))

    return linear


def _competing(form: Form) -> Call:
    merge, keep = _KERNELS[form.kernel], _kept(form)

    def compete(outs: Rows, numbers: torch.Tensor, ties: torch.Tensor, values: Rows, needs: Sequence[Rows]) -> None:
        base, ballots = values[0].float(), []
        index = torch.arange(values[0].shape[0], device=values[0].device)
        for k, theta in enumerate(values[1:]):
            x = keep(theta.float() - base, numbers[k, RULE:], ties[k], index, needs[k])
            ballots.append(numbers[k, WEIGHT] * x)
        found = expressions.tallied_vote(base, ballots, numbers) if form.tallied else [merge(base, ballots, numbers)]
        for out, values_of in zip(outs, found, strict=True):
            out.copy_(expressions.rounded(values_of, out.dtype))

    return compete


def _kept_l1(form: Form) -> Call:
    keep = _kept(form)

    def kept_l1(
        _: Rows, numbers: torch.Tensor, ties: torch.Tensor, values: Rows, needs: Sequence[Rows]
    ) -> torch.Tensor:
        base, sums = values[0].float(), []
        index = torch.arange(values[0].shape[0], device=values[0].device)
        for k, theta in enumerate(values[1:]):
            x = keep((theta.float() - base).abs(), numbers[k, RULE:], ties[k], index, needs[k])
            sums.append(expressions.on_grid(x, numbers[k, GRID]).sum())
        return torch.stack(sums)

    return kept_l1


def _kept(form: Form) -> Callable[..., torch.Tensor]:
    """What a form's rule keeps of a source's changes; the last argument holds what the source needs for it."""
    if form.rule is Drop:
        return lambda x, numbers, _ties, _index, needs: expressions.dropped(x, numbers, *needs)
    if form.rule is not Prune:
        rule = _RULES.get(form.rule, _everything)
        return lambda x, numbers, ties, index, _: rule(x, numbers, ties, index)
    by_row, inverse = form.by_row, form.inverse

    def pruned(
        x: torch.Tensor, numbers: torch.Tensor, _ties: torch.Tensor, _index: torch.Tensor, needs: Rows
    ) -> torch.Tensor:
        one, other, table = needs
        levels = table if by_row else expressions.table_levels(table, x)
        return expressions.pruned(x, numbers, one, other, levels, inverse=inverse)

    return pruned


def _everything(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return x
