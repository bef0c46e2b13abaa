"""Operators that trim, drop, elect or select: what each one means, tensor by tensor.

Legend: `w_k` weight of source k, `x_k = theta_k - theta_0` its task vector, `rho_k` density, `lambda` global scale.

Where the literature leaves room, beyond what `evomerge.merging.operators` says:

* Breadcrumbs keeps exactly `int(rho n)` elements of a tensor, perhaps none, below the `int(gamma n)` largest; if both
  do not fit, fewer outliers are dropped. At density 1 nothing is dropped (mergekit's rules).
* DELLA's window is cut to `min(epsilon, rho, 1 - rho)`, so that probabilities stay in [0, 1]. Ranks are among the
  elements of a row (paper, mergekit) or of the tensor (`rank: tensor`, as the authors' code also offers), in 256
  levels. `rescale: inverse` divides each element by its own probability (paper), `l1` restores the tensor's sum of
  magnitudes (mergekit).
* Consensus compares `|w_k x_k|` with the weighted sum of the other sources. One source alone outweighs nothing but 0.
* MagMax and exclusive give ties to the source that is named first.
* Exclusive merging is OBIM's turn-taking without data, at once for all elements: in turn t, of 256, each source claims
  those of its `t`-th largest changes that nobody has yet, and stops when it has been offered the share `rho_k`. Whoever
  did not change an element does not claim it.
* SCE keeps the `int(tau m)` elements of the highest variance among the m whose variance is not 0 (in fp32, as mergekit
  counts), of equal ones those that come first; so one source alone keeps nothing unless tau is 1. Energies are relative
  to their sum. `floor: true` adds mergekit's absolute limits: sources count alike where mean squares sum to less than
  1e-6, and no divisor is below 1e-6.
* RAM+ counts at least one element as unique to a source; alpha bounds the ratio anyway.
* Nearswap moves each weight by at most t, which is what its published weighting comes to.
* Fusion compares the importance of every change with that of all changes of the tensor (arcee fusion samples them, in
  fp32 and with smoothed probabilities); a tensor of one axis is one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from evomerge.merging import rank_tables, selection
from evomerge.merging.keep_rules import Clip, Fence, Trim
from evomerge.merging.lowering import Lowering, base_of, delta, divisor_of, per_source, scale_of, shared, single, vote
from evomerge.merging.plan import Consensus, Copy, Kernel, Overlap, Score, Term, Vote, Winner
from evomerge.merging.selection import Changes, Importance, Variance
from evomerge.merging.sparse import Part, banded, dropped, pruned, trimmed, trimmed_by_tensor

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

    Sparsify = Callable[[Recipe, ModelPool, TensorSpec], Sequence[Part]]

__all__ = ["SPARSE_LOWERINGS"]

_FLOOR = 1e-6
"""mergekit's least sum of mean squares, and least divisor."""


def _ties(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Trim small changes, elect a sign, merge who agrees (Yadav et al. 2023)."""
    parts = trimmed(recipe, pool)
    return lambda spec: vote(recipe, spec, parts(spec))


def _added(sparsify: Sparsify) -> Callable[[Recipe, ModelPool], Lowering]:
    """Sparsify, then add: DARE (Yu et al. 2024), Breadcrumbs (Davari & Belilovsky 2023), DELLA (Deep et al. 2024)."""

    def lowering_of(recipe: Recipe, pool: ModelPool) -> Lowering:
        def lowering(spec: TensorSpec) -> Kernel:
            parts = sparsify(recipe, pool, spec)
            divisor = divisor_of([part.weight for part in parts]) if recipe.option("normalize") else 1.0
            return delta(recipe, spec, [part.term for part in parts], divisor)

        return lowering

    return lowering_of


def _elected(sparsify: Sparsify) -> Callable[[Recipe, ModelPool], Lowering]:
    """Sparsify, then elect a sign and merge who agrees."""

    def lowering_of(recipe: Recipe, pool: ModelPool) -> Lowering:
        return lambda spec: vote(recipe, spec, sparsify(recipe, pool, spec))

    return lowering_of


def _consensus(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Keep the sum where k sources matter to it (Wang et al. 2024, TALL masks)."""

    def lowering(spec: TensorSpec) -> Kernel:
        weights, cuts = (per_source(recipe, name, spec) for name in ("weight", "lambda_t"))
        present = [row for row in zip(recipe.sources, weights, cuts, strict=True) if row[1]]
        scale = scale_of(recipe, spec)
        if not present or not scale:
            return Copy(source=base_of(recipe))
        return Consensus(
            base=base_of(recipe),
            terms=tuple(Term(source=source, weight=weight) for source, weight, _ in present),
            cuts=tuple(single(cut) for *_, cut in present),
            least=shared(recipe, "k", spec),
            scale=scale,
        )

    return lowering


def _magmax(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Per element, the change of the largest magnitude (Marczak et al. 2024)."""

    def lowering(spec: TensorSpec) -> Kernel:
        pairs = zip(recipe.sources, per_source(recipe, "weight", spec), strict=True)
        return _contest(recipe, spec, [Term(source=source, weight=weight) for source, weight in pairs], "magnitude")

    return lowering


def _exclusive(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Per element, the change of the source that claims it first (after OBIM, Wang et al. 2025)."""

    def lowering(spec: TensorSpec) -> Kernel:
        parts = trimmed_by_tensor(recipe, pool, spec)
        return _contest(recipe, spec, [part.term for part in parts], "rank")

    return lowering


def _contest(recipe: Recipe, spec: TensorSpec, terms: Sequence[Term], by: Score) -> Kernel:
    terms = tuple(term for term in terms if term.weight)
    scale = scale_of(recipe, spec)
    if len(terms) < 2 or not scale:
        return delta(recipe, spec, terms, 1.0)
    return Winner(base=base_of(recipe), terms=terms, by=by, scale=scale)


def _sce(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Select by variance, weigh by energy, erase minorities (Wan et al. 2024, FuseChat)."""

    def lowering(spec: TensorSpec) -> Kernel:
        changes = _changes(recipe, spec)
        share, count = shared(recipe, "select_topk", spec), 0
        if share < 1:
            count = int(np.float32(selection.nonzero(pool, Variance(changes))) * np.float32(share))
            if not count:
                return Copy(source=base_of(recipe))
        select = _cut(pool, Variance(changes), count) if count else None
        weights = _energy_shares(recipe, pool, spec, select)
        terms = tuple(Term(source=source, weight=1.0) for source in recipe.sources)
        if len(terms) < 2:
            return delta(recipe, spec, terms, 1.0)
        return Vote(
            base=base_of(recipe),
            terms=terms,
            gains=weights,
            shares=weights,
            zero="plus",
            scale=1.0,
            select=select,
            floor=_FLOOR if recipe.option("floor") else 0.0,
        )

    return lowering


def _energy_shares(recipe: Recipe, pool: ModelPool, spec: TensorSpec, select: Trim | None) -> tuple[float, ...]:
    means = [energy / math.prod(spec.shape) for energy in selection.energies(pool, _changes(recipe, spec), select)]
    total = sum(means)
    if total <= (_FLOOR if recipe.option("floor") else 0.0):
        return (1.0 / len(means),) * len(means)
    return tuple(mean / total for mean in means)


def _ram(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Add what one source changed alone, average what several did (RAM, arXiv 2601.13572)."""
    gains = (1.0,) * len(recipe.sources)
    return lambda spec: _overlap(recipe, spec, gains)


def _ram_plus(recipe: Recipe, pool: ModelPool) -> Lowering:
    """RAM with gains `1 + r min(alpha, common_k / unique_k)` on what source k changed alone (arXiv 2601.13572)."""

    def lowering(spec: TensorSpec) -> Kernel:
        r, alpha, epsilon = (single(shared(recipe, name, spec)) for name in ("r", "alpha", "epsilon"))
        counts = selection.overlaps(pool, _changes(recipe, spec), epsilon)
        shares = (common / max(unique, 1) for common, unique in zip(counts.common, counts.unique, strict=True))
        return _overlap(recipe, spec, tuple(single(1.0 + single(r * min(alpha, single(s)))) for s in shares))

    return lowering


def _overlap(recipe: Recipe, spec: TensorSpec, gains: tuple[float, ...]) -> Kernel:
    terms = tuple(Term(source=source, weight=1.0) for source in recipe.sources)
    epsilon = single(shared(recipe, "epsilon", spec))
    return Overlap(base=base_of(recipe), terms=terms, epsilon=epsilon, gains=gains)


def _nearswap(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Swap weights that are near, approach the others: `x` cut to `[-t, t]` (mergekit; NearSwap by alchemonaut)."""

    def lowering(spec: TensorSpec) -> Kernel:
        t = single(shared(recipe, "t", spec))
        (source,) = recipe.sources
        return delta(recipe, spec, [Term(source=source, weight=float(t > 0), keep=Clip(limit=t))], 1.0)

    return lowering


def _fusion(recipe: Recipe, pool: ModelPool) -> Lowering:
    """Take changes whose importance is at least `median + fence (q3 - q1)` (after mergekit's arcee fusion).

    Importance is `|x|` times the Kullback-Leibler divergence of its row's softmax from the base's.
    """

    def lowering(spec: TensorSpec) -> Kernel:
        (source,) = recipe.sources
        measure = Importance(base=base_of(recipe), source=source, name=spec.name)
        size = math.prod(spec.shape)
        ranks = [size - int(q * (size - 1)) for q in (0.25, 0.5, 0.75)]
        found = rank_tables.ranked(pool, measure, ranks)
        low, median, high = (found[rank].magnitude for rank in ranks)
        least = single(median + shared(recipe, "fence", spec) * (high - low))
        fence = Fence(least=least, columns=spec.shape[-1] if spec.shape else 1)
        return delta(recipe, spec, [Term(source=source, weight=1.0, keep=fence)], 1.0)

    return lowering


def _changes(recipe: Recipe, spec: TensorSpec) -> Changes:
    return Changes(base=base_of(recipe), sources=recipe.sources, name=spec.name)


def _cut(pool: ModelPool, measure: Variance, rank: int) -> Trim:
    found = rank_tables.ranked(pool, measure, [rank])[rank]
    return Trim(threshold=found.magnitude, last_tie=found.index)


SPARSE_LOWERINGS: Mapping[str, Callable[[Recipe, ModelPool], Lowering]] = MappingProxyType(
    {
        "ties": _ties,
        "dare_linear": _added(dropped),
        "dare_ties": _elected(dropped),
        "breadcrumbs": _added(banded),
        "breadcrumbs_ties": _elected(banded),
        "della_linear": _added(pruned),
        "della": _elected(pruned),
        "consensus": _consensus,
        "magmax": _magmax,
        "exclusive": _exclusive,
        "sce": _sce,
        "ram": _ram,
        "ram_plus": _ram_plus,
        "nearswap": _nearswap,
        "fusion": _fusion,
    }
)
"""By operator."""
