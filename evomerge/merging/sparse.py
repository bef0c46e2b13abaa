"""Which elements of each source's task vector a recipe keeps: trimmed by magnitude (TIES) or dropped at random (DARE).

Knows nothing of how the sources are then combined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.merging import masks, statistics
from evomerge.merging.plan import Drop, Term, Trim

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec
    from evomerge.recipe import Recipe

__all__ = ["Part", "dropped", "is_float", "trimmed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A sparsified source: its task vector, times `rescale`, where kept."""

    source: str
    weight: float
    keep: Trim | Drop | None
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
    """Whether a tensor holds weights; others are never merged."""
    return spec.dtype in {"bfloat16", "float16", "float32", "float64"}


def trimmed(recipe: Recipe, pool: ModelPool) -> Callable[[TensorSpec], list[Part]]:
    """The parts of every tensor under TIES, thresholds over the tensor or over the whole model."""
    of_model = _model_trims(recipe, pool) if recipe.option("trim") == "model" else None

    def parts(spec: TensorSpec) -> list[Part]:
        found = []
        for source, weight, density in _present(recipe, spec):
            keep = of_model[source, density] if of_model else _tensor_trim(recipe, pool, spec, source, density)
            found.append(Part(source=source, weight=weight, keep=keep))
        return found

    return parts


def dropped(recipe: Recipe, pool: ModelPool, spec: TensorSpec) -> list[Part]:
    """The parts of one tensor under DARE."""
    parts = []
    for source, weight, density in _present(recipe, spec):
        drop = (
            Drop(seed=masks.tensor_seed(recipe.mask_seed, source, spec.name), density=density) if density < 1 else None
        )
        rescale = _rescale(recipe, pool, spec, source, drop) if drop else 1.0
        parts.append(Part(source=source, weight=weight, keep=drop, rescale=rescale))
    return parts


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
        found = statistics.ranked(pool, difference, ranks.values()) if ranks else {}
        trims[source, 1.0] = None
        for density, rank in ranks.items():
            trims[source, density] = Trim(threshold=found[rank].magnitude, last_tie=size)
    return trims


def _tensor_trim(recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, density: float) -> Trim | None:
    if density >= 1:
        return None
    rank = max(1, int(density * math.prod(spec.shape)))
    difference = _difference(recipe, source, spec.name)
    cut = statistics.ranked(pool, difference, [rank])[rank]
    return Trim(threshold=cut.magnitude, last_tie=cut.index)


def _rescale(recipe: Recipe, pool: ModelPool, spec: TensorSpec, source: str, drop: Drop) -> float:
    match recipe.option("rescale"):
        case "inverse":
            return 1.0 / drop.density
        case "l1":
            difference = _difference(recipe, source, spec.name)
            before, after = statistics.l1(pool, difference), statistics.kept_l1(pool, difference, drop)
            return before / after if min(before, after) >= 1e-7 else 1.0
        case _:
            return 1.0


def _difference(recipe: Recipe, source: str, *names: str) -> statistics.Difference:
    return statistics.Difference(base=str(recipe.base), source=source, names=names)
