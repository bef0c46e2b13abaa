"""Which elements of each source's task vector take part: by magnitude (TIES, Breadcrumbs), at random (DARE, DELLA).

Knows nothing of how the sources are then combined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from evomerge.merging import masks, prepared, rank_tables, statistics
from evomerge.merging.keep_rules import Band, Drop, Keep, Prune, RankScope, Trim
from evomerge.merging.kept import TABLED, kept_l1, kept_l1_from_table
from evomerge.merging.plan import Term

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

__all__ = ["Part", "banded", "dropped", "is_float", "pruned", "trimmed", "trimmed_by_tensor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A sparsified source: its task vector, times `rescale`, where kept; a `rescale` of 0 keeps nothing."""

    source: str
    weight: float
    keep: Keep | None
    rescale: float = 1.0

    @property
    def term(self) -> Term:
        """The source with its weight."""
        return Term(source=self.source, weight=self.weight * self.rescale, keep=self.keep)

    @property
    def ballot(self) -> Term:
        """The same with a weight of one, signed."""
        return Term(source=self.source, weight=math.copysign(self.rescale, self.weight), keep=self.keep)


def is_float(spec: TensorSpec) -> bool:
    """Whether a tensor holds weights; others, and those without elements, are never merged."""
    return spec.dtype in {"bfloat16", "float16", "float32", "float64"} and 0 not in spec.shape


def trimmed(recipe: Recipe, pool: ModelPool) -> Callable[[TensorSpec], list[Part]]:
    """The parts of every tensor under TIES, thresholds over the tensor or over the whole model."""
    if recipe.option("trim") == "tensor":
        return lambda spec: trimmed_by_tensor(recipe, pool, spec)
    of_model = _model_trims(recipe, pool)
    return lambda spec: [
        Part(source=source, weight=weight, keep=of_model[source, density])
        for source, weight, density in _present(recipe, spec)
    ]


def trimmed_by_tensor(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> list[Part]:
    """The parts of one tensor, each the `max(1, int(rho n))` largest changes."""
    size = math.prod(spec.shape)
    parts = []
    for source, weight, density in _present(recipe, spec):
        difference = _difference(recipe, source, spec.name)
        keep = _trim(pool, difference, max(1, int(density * size))) if density < 1 else None
        parts.append(Part(source=source, weight=weight, keep=keep))
    return parts


def banded(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> list[Part]:
    """The parts of one tensor under Breadcrumbs: `int(rho n)` changes, below the `int(gamma n)` largest."""
    size = math.prod(spec.shape)
    gammas = dict(zip(recipe.sources, recipe.parameter("gamma").at(spec.role, spec.layer), strict=True))
    parts = []
    for source, weight, density in _present(recipe, spec):
        kept = int(density * size)
        outliers = min(int(gammas[source] * size), size - kept)
        keep = _band(pool, _difference(recipe, source, spec.name), outliers, kept) if 0 < kept < size else None
        parts.append(Part(source=source, weight=weight, keep=keep, rescale=1.0 if kept else 0.0))
    return parts


def pruned(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> list[Part]:
    """The parts of one tensor under DELLA."""
    epsilons = dict(zip(recipe.sources, recipe.parameter("epsilon").at(spec.role, spec.layer), strict=True))
    rules: dict[str, Prune | Drop] = {
        source: Prune(
            seed=masks.tensor_seed(recipe.mask_seed, source, spec.name),
            density=density,
            epsilon=masks.window(min(epsilons[source], density, 1 - density)),
            ranks=cast("RankScope", recipe.option("rank")),
            inverse=recipe.option("rescale") == "inverse",
        )
        for source, _, density in _present(recipe, spec)
        if masks.FINEST <= density < 1
    }
    return _masked(recipe, spec, rules, _rescales(recipe, pool, spec, rules))


def dropped(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> list[Part]:
    """The parts of one tensor under DARE."""
    rules: dict[str, Prune | Drop] = {
        source: Drop(seed=masks.tensor_seed(recipe.mask_seed, source, spec.name), density=density)
        for source, _, density in _present(recipe, spec)
        if masks.FINEST <= density < 1
    }
    inverse = recipe.option("rescale") == "inverse"
    rescales = {source: 1.0 / rule.density for source, rule in rules.items()} if inverse else None
    return _masked(recipe, spec, rules, rescales or _rescales(recipe, pool, spec, rules))


def _masked(
    recipe: Recipe, spec: TensorSpec, rules: Mapping[str, Drop | Prune], rescales: Mapping[str, float]
) -> list[Part]:
    """Sources that are masked, or of density 1."""
    return [
        Part(source=source, weight=weight, keep=rules.get(source), rescale=rescales.get(source, 1.0))
        for source, weight, density in _present(recipe, spec)
        if density >= masks.FINEST
    ]


def _present(recipe: Recipe, spec: TensorSpec) -> list[tuple[str, float, float]]:
    """Source, weight and density of every source whose density is not 0."""
    weights, densities = (recipe.parameter(name).at(spec.role, spec.layer) for name in ("weight", "density"))
    return [row for row in zip(recipe.sources, weights, densities, strict=True) if row[2] > 0]


def _model_trims(recipe: Recipe, pool: ModelPool) -> Mapping[tuple[str, float], Trim | None]:
    """Thresholds over each source's whole flattened model, for every density that the recipe asks of it."""
    specs = [spec for spec in pool.specs if is_float(spec)]
    names = tuple(spec.name for spec in specs)
    size = sum(math.prod(spec.shape) for spec in specs)
    trims: dict[tuple[str, float], Trim | None] = {}
    for k, source in enumerate(recipe.sources):
        rows = recipe.parameter("density").by_role()
        ranks = {row[k]: max(1, int(row[k] * size)) for _, role in rows for row in role if row[k] < 1}
        difference = _difference(recipe, source, *names)
        found = rank_tables.ranked(pool, difference, ranks.values()) if ranks else {}
        trims[source, 1.0] = None
        for density, rank in ranks.items():
            trims[source, density] = Trim(threshold=found[rank].magnitude, last_tie=size)
    return trims


def _trim(pool: ModelPool, difference: statistics.Difference, rank: int) -> Trim:
    """Keep the elements up to some rank."""
    cut = rank_tables.ranked(pool, difference, [rank])[rank]
    return Trim(threshold=cut.magnitude, last_tie=cut.index)


def _band(pool: ModelPool, difference: statistics.Difference, outliers: int, kept: int) -> Keep:
    """Keep the elements of the ranks from `outliers + 1` to `outliers + kept`."""
    if not outliers:
        return _trim(pool, difference, kept)
    found = rank_tables.ranked(pool, difference, [outliers, outliers + kept])
    outer, inner = (Trim(threshold=cut.magnitude, last_tie=cut.index) for _, cut in sorted(found.items()))
    return Band(inner=inner, outer=outer)


def _rescales(recipe: Recipe, pool: ModelPool, spec: TensorSpec, rules: Mapping[str, Drop | Prune]) -> dict[str, float]:
    """What restores sums of magnitudes, if that is what the recipe asks for; candidates often share their masks."""
    if recipe.option("rescale") != "l1":
        return {}
    base = str(recipe.base)
    latest: dict[str, tuple[Drop | Prune, float]] = prepared.once(pool, ("kept l1", base, spec.name), dict)
    new = {source: rule for source, rule in rules.items() if latest.get(source, ())[:1] != (rule,)}
    moved = {source for source, rule in new.items() if source in latest and _moved(latest[source][0], rule)}
    if moved and math.prod(spec.shape) >= TABLED:
        sums = {source: kept_l1_from_table(pool, base, source, new[source], spec.name) for source in moved}
    else:
        sums = {}
    if rest := {source: rule for source, rule in new.items() if source not in sums}:
        sums |= kept_l1(pool, base, rest, spec.name)
    latest.update({source: (rule, sums[source]) for source, rule in new.items()})
    before = {source: statistics.l1(pool, _difference(recipe, source, spec.name)) for source in rules}
    return {source: _restoring(before[source], latest[source][1]) for source in rules}


def _moved(before: Drop | Prune, now: Drop | Prune) -> bool:
    """Whether rules differ in their density alone, as they do from candidate to candidate of some searches."""
    return before != now and replace(before, density=now.density) == now


def _restoring(before: float, after: float) -> float:
    return before / after if min(before, after) >= 1e-7 else 1.0


def _difference(recipe: Recipe, source: str, *names: str) -> statistics.Difference:
    return statistics.Difference(base=str(recipe.base), source=source, names=names)
