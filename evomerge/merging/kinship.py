"""How the experts of a pool relate to their base and to each other: norms, cosines and sign conflicts.

One pass over the weights, kept on disk by the pool's content. Says nothing of how good a merge will be; cosines only
tell how much the experts' changes share. Needs torch to measure, not to read.

Legend: `theta_0` base, `x_k = theta_k - theta_0` task vector of expert k, formed in fp32; `G_ij = <x_i, x_j>`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, final

from evomerge.errors import require
from evomerge.merging.cache import remember, remembered
from evomerge.recipe import OutputDtype, Role

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec

__all__ = ["Kinship", "Products", "kinship"]

_VERSION = 1
"""Raised whenever a measurement would come out differently, or is kept differently."""

_CHUNK = 1 << 16
"""Elements of each model whose signs are compared at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Products:
    """Sums over some tensors, from which everything else follows; sums of disjoint tensors add up.

    Attributes:
        base: `<theta_0, theta_0>`.
        gram: `G`, `[expert][expert]`.
        shared: elements that at least two experts changed.
        conflicts: of these, the elements that some experts increased and others decreased.
    """

    base: float
    gram: tuple[tuple[float, ...], ...]
    shared: int
    conflicts: int

    def __add__(self, other: Products) -> Products:
        pairs = zip(self.gram, other.gram, strict=True)
        return Products(
            base=self.base + other.base,
            gram=tuple(tuple(a + b for a, b in zip(mine, theirs, strict=True)) for mine, theirs in pairs),
            shared=self.shared + other.shared,
            conflicts=self.conflicts + other.conflicts,
        )

    def norm(self, expert: int) -> float:
        """Relative size of an expert's change, `|x_k| / |theta_0|`; of a base of zeros, `|x_k|` itself."""
        return math.sqrt(self.gram[expert][expert] / (self.base or 1.0))

    def cosine(self, one: int, other: int) -> float:
        """Cosine between two task vectors, the model kinship of Hu et al. 2024; 0 if either is zero."""
        square = self.gram[one][one] * self.gram[other][other]
        return max(-1.0, min(1.0, self.gram[one][other] / math.sqrt(square))) if square else 0.0

    def distance(self, one: int, other: int) -> float:
        """How far two experts are apart, relative to the larger change: `|x_i - x_j| / max(|x_i|, |x_j|)`."""
        squares = self.gram[one][one], self.gram[other][other]
        apart = max(0.0, sum(squares) - 2 * self.gram[one][other])
        return math.sqrt(apart / max(squares)) if max(squares) else 0.0

    @property
    def conflict_share(self) -> float:
        """Share of the elements changed by several experts on whose sign they disagree; 0 without such elements.

        Changes of K experts that know nothing of each other disagree on `1 - 2^(1 - K)` of them.
        """
        return self.conflicts / self.shared if self.shared else 0.0


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Kinship:
    """What was measured of a pool.

    Attributes:
        experts: pool names, in the pool's order; indices of `Products` count in it.
        dtype: of the models' weights.
        cells: products by module role and layer (None outside the layers).
    """

    experts: tuple[str, ...]
    dtype: OutputDtype
    cells: Mapping[tuple[Role, int | None], Products]

    @property
    def total(self) -> Products:
        """Over all tensors."""
        return _sum(self.cells.values())

    @property
    def roles(self) -> dict[Role, Products]:
        """By module role, over all layers; roles that the models have."""
        names = dict.fromkeys(role for role, _ in self.cells)
        return {name: _sum(cell for (role, _), cell in self.cells.items() if role == name) for name in names}

    @property
    def layers(self) -> dict[int, Products]:
        """By layer, over all roles."""
        numbers = sorted({layer for _, layer in self.cells if layer is not None})
        return {number: _sum(cell for (_, layer), cell in self.cells.items() if layer == number) for number in numbers}


def kinship(pool: ModelPool) -> Kinship:
    """Measure a pool, or remember what an earlier measurement found.

    Args:
        pool: the models; at least one expert.

    Raises:
        MissingExtraError: torch is not installed, and nothing is remembered.
    """
    key = [_VERSION, pool.digest, *pool.experts]
    cells = _recalled(remembered("kinship", key), len(pool.experts))
    if cells is None:
        cells = _measured(pool)
        remember("kinship", key, {"cells": [[*place, asdict(cell)] for place, cell in cells.items()]})
    return Kinship(experts=pool.experts, dtype=pool.dtype, cells=cells)


def _recalled(facts: Mapping[str, Any] | None, experts: int) -> dict[tuple[Role, int | None], Products] | None:
    """What the cache holds; None if there is nothing, or nothing that can be trusted."""
    try:
        cells = {(role, layer): _products_of(cell) for role, layer, cell in (facts or {})["cells"]}
        shapes = {(len(cell.gram), *map(len, cell.gram)) for cell in cells.values()}
        return cells if shapes == {(experts,) * (experts + 1)} else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _products_of(cell: Mapping[str, Any]) -> Products:
    return Products(
        base=float(cell["base"]),
        gram=_table([float(entry) for entry in row] for row in cell["gram"]),
        shared=int(cell["shared"]),
        conflicts=int(cell["conflicts"]),
    )


def _table(rows: Iterable[Iterable[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, rows))


def _sum(products: Iterable[Products]) -> Products:
    return functools.reduce(Products.__add__, products)


def _measured(pool: ModelPool) -> dict[tuple[Role, int | None], Products]:
    require("torch", "merge")
    from evomerge.merging.sparse import is_float

    cells: dict[tuple[Role, int | None], list[Products]] = {}
    for spec in filter(is_float, pool.specs):
        cells.setdefault((spec.role, spec.layer), []).append(_products(pool, spec))
    order = sorted(cells, key=lambda cell: (cell[1] is None, cell[1] or 0, cell[0]))
    return {cell: _sum(cells[cell]) for cell in order}


def _products(pool: ModelPool, spec: TensorSpec) -> Products:
    from evomerge.merging.gram import gram

    ((own,),) = gram(pool, (pool.base,), spec.name)[0].tolist()
    between = gram(pool, pool.experts, spec.name, base=pool.base)[0].tolist()
    shared, conflicts = _signs(pool, spec.name)
    return Products(base=own, gram=_table(between), shared=shared, conflicts=conflicts)


def _signs(pool: ModelPool, name: str) -> tuple[int, int]:
    """Elements changed by two experts or more, and those among them that have both signs."""
    import torch

    models = [pool.tensor(model, name).reshape(-1) for model in (pool.base, *pool.experts)]
    shared = conflicts = 0
    for base, *experts in zip(*(model.split(_CHUNK) for model in models), strict=True):  # type: ignore[no-untyped-call]
        raised, lowered = (torch.zeros(len(base), dtype=torch.int16) for _ in range(2))
        for expert in experts:
            raised += expert > base
            lowered += expert < base
        shared += int(torch.count_nonzero(raised + lowered > 1))
        conflicts += int(torch.count_nonzero(raised.minimum(lowered)))
    return shared, conflicts
