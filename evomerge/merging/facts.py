"""What kernels need to know of whole tensors: tables of ranks, divergences of rows. Computed once per pool.

Knows which rules need what, and nothing of how they use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.merging import ranks, selection
from evomerge.merging.keep_rules import Fence, Prune, RankScope
from evomerge.merging.plan import TensorPlan, Term, Winner
from evomerge.merging.statistics import Difference

if TYPE_CHECKING:
    import torch

    from evomerge.merging.pool import ModelPool

__all__ = ["facts_of"]


def facts_of(tensor: TensorPlan, pool: ModelPool) -> dict[str, torch.Tensor]:
    """The facts about one tensor, by source: a table of ranks, or divergences; none where nothing is needed."""
    facts = {}
    for term in getattr(tensor.kernel, "terms", ()):
        base = tensor.sources[0]
        if scope := _ranks(tensor, term):
            difference = Difference(base=base, source=term.source, names=(tensor.origin,))
            facts[term.source] = ranks.table(pool, difference, scope)
        elif isinstance(term.keep, Fence):
            facts[term.source] = selection.divergences(pool, base, term.source, tensor.origin)
    return facts


def _ranks(tensor: TensorPlan, term: Term) -> RankScope | None:
    """Among which elements a term's changes must be ranked, if at all."""
    if isinstance(tensor.kernel, Winner) and tensor.kernel.by == "rank":
        return "tensor"
    return term.keep.ranks if isinstance(term.keep, Prune) else None
