"""Keep rules: what of a source's change takes part, one block at a time, in place, in fp32.

Knows nothing of how sources are then combined.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from evomerge.merging import masks, ranks
from evomerge.merging.keep_rules import Band, Clip, Drop, Fence, Prune, Trim
from evomerge.merging.plan import Term

__all__ = ["apply", "trim"]


def apply(term: Term, start: int, x: torch.Tensor, facts: Mapping[str, torch.Tensor]) -> None:
    """Overwrite a source's changes with what its rule keeps of them.

    Args:
        term: the source and its rule.
        start: index of the first element in the flattened tensor.
        x: changes, fp32, `[n]`.
        facts: by source, what its rule needs to know of the whole tensor (see `evomerge.merging.facts`).
    """
    match term.keep:
        case Trim() as rule:
            trim(rule, start, x)
        case Band() as rule:
            _band(rule, start, x)
        case Drop() as rule:
            x.mul_(masks.keep(rule.seed, rule.density, start, len(x), x.device))
        case Prune() as rule:
            _prune(rule, start, x, facts[term.source])
        case Clip() as rule:
            x.clamp_(-rule.limit, rule.limit)
        case Fence() as rule:
            _fence(rule, start, x, facts[term.source])


def trim(rule: Trim, start: int, x: torch.Tensor) -> None:
    """Zero what lies below the threshold, and what equals it beyond the last tie."""
    ties = min(max(rule.last_tie + 1 - start, 0), len(x))
    below = float(np.nextafter(np.float32(rule.threshold), np.float32(0)))
    for part, largest_zeroed in ((x[:ties], below), (x[ties:], rule.threshold)):
        if len(part):
            torch.ops.aten.hardshrink.out(part, largest_zeroed, out=part)


def _band(rule: Band, start: int, x: torch.Tensor) -> None:
    outer = x.clone()
    trim(rule.outer, start, outer)
    trim(rule.inner, start, x)
    x.sub_(outer)  # exactly 0 where both keep it


def _prune(rule: Prune, start: int, x: torch.Tensor, table: torch.Tensor) -> None:
    levels = ranks.levels(table, rule.ranks, start, x.abs())
    kept = masks.keep_by_level(rule.seed, rule.density, rule.epsilon, levels, start)
    if rule.inverse:
        probabilities = masks.level_limits(*masks.ramp(rule.density, rule.epsilon), levels)
        x.mul_(torch.where(kept > 0, 1.0 / probabilities, 0.0))
    else:
        x.mul_(kept)


def _fence(rule: Fence, start: int, x: torch.Tensor, divergences: torch.Tensor) -> None:
    rows = torch.arange(start, start + len(x), device=x.device) // rule.columns
    x.mul_(x.abs().mul_(divergences[rows]) >= rule.least)
