"""Split-point space (M2N2, arXiv 2508.16204): linear merges whose coefficients change at places along the depth.

A place has one coefficient for each model. Crossing two genomes mixes them on the sphere, with swapped shares left and
right of a split; the angle is that between the two whole merged models, which follows from the scalar products of the
pool's models at each place.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.errors import ConfigError, Fault
from evomerge.recipe import OPERATORS, Field, Recipe, Role, options_of, uniform
from evomerge.spaces.base import Gene, Genome, Models
from evomerge.spaces.crossing import Floats, crossed

if TYPE_CHECKING:
    from evomerge.config import SplitPointConfig

__all__ = ["SplitPointSpace"]

_HIGHEST = 2.0
"""Largest coefficient. Two models less than 150 degrees apart never mix to more; fine-tuned ones are near parallel."""

_DECIMALS = OPERATORS["linear"].parameters["weight"].decimals
"""Places behind the point that a recipe keeps of a coefficient."""

_PLACES: dict[str, tuple[tuple[Role, ...], ...]] = {
    "layer": (("attention", "mlp", "norm"),),
    "module": (("attention", "norm"), ("mlp",)),
}
"""Module roles that share a place, in the order in which they run."""


@final
class SplitPointSpace:
    """One coefficient for each model at each place: embeddings, then layer by layer (or module by module), then head.

    Genes run over places, then models; the base, if it is among the parents, comes first. The search starts from the
    uniform average; it knows the models themselves.

    Args:
        config: places and parents.
        models: what is merged; crossing needs their scalar products.

    Raises:
        ConfigError: a single parent.
    """

    def __init__(self, config: SplitPointConfig, models: Models) -> None:
        self._models = models
        self._pool = (models.base, *models.experts)
        self._names = self._pool if config.base else models.experts
        if len(self._names) < 2:
            message = f"expected two parents or more; got {self._names[0]}; add experts, or set $.space.base to true"
            raise ConfigError("search space", [Fault(path="$.pool.experts", message=message)])
        inner = [(roles, layer) for layer in range(models.layers) for roles in _PLACES[config.places]]
        self._places: list[tuple[tuple[Role, ...], int | None]] = [(("embed",), None), *inner, (("head",), None)]
        self.genes = tuple(self._genes())
        self.start = Genome(tuple(gene.start for gene in self.genes))

    @property
    def known(self) -> tuple[Genome, ...]:
        """Each model alone."""
        return tuple(self._encoded(np.tile(row, (self.splits, 1))) for row in np.eye(len(self._names)))

    @property
    def splits(self) -> int:
        """Number of places."""
        return len(self._places)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome; see `SearchSpace.decode`. A model alone is recorded as the anchor that it is."""
        coefficients = np.round(self._coefficients(genome), _DECIMALS)
        used = [k for k in range(len(self._names)) if coefficients[:, k].any()] or [0]
        if len(used) == 1 and (coefficients[:, used] == 1.0).all():
            return uniform([self._names[used[0]]], layers=self._models.layers, dtype=self._models.dtype)
        return Recipe(
            operator="linear",
            options=options_of(OPERATORS["linear"], "paper", normalize=False),
            base=None,
            sources=tuple(self._names[k] for k in used),
            parameters=(("weight", self._field(coefficients[:, used])),),
            dtype=self._models.dtype,
        )

    def cross(self, first: Genome, second: Genome, *, split: int, share: float) -> Genome:
        """A child of two genomes; see `Breeding.cross`. Coefficients end at 0 and 2."""
        one, other = self._coefficients(first), self._coefficients(second)
        child = crossed(one, other, split=split, share=share, cosine=self._cosine(one, other))
        return self._encoded(child)

    def _genes(self) -> Iterator[Gene]:
        start = 1.0 / len(self._names) / _HIGHEST
        for roles, layer in self._places:
            place = roles[0] if layer is None else f"layer{layer}" if len(roles) == 3 else f"layer{layer}.{roles[0]}"
            for name in self._names:
                yield Gene(name=f"weight.{place}.{name}", low=0.0, high=_HIGHEST, start=start)

    def _coefficients(self, genome: Genome) -> Floats:
        """`A[p, k]`."""
        if len(genome) != len(self.genes):
            raise ValueError(f"this space has {len(self.genes)} genes; got a genome of {len(genome)}")
        values: Floats = _HIGHEST * np.array(genome.values).reshape(self.splits, -1)
        return values

    def _encoded(self, coefficients: Floats) -> Genome:
        return Genome(tuple(np.clip(coefficients / _HIGHEST, 0.0, 1.0).ravel()))

    def _field(self, coefficients: Floats) -> Field:
        rows: dict[Role, list[tuple[float, ...]]] = {}
        for (roles, _), row in zip(self._places, coefficients.tolist(), strict=True):
            for role in roles:
                rows.setdefault(role, []).append(tuple(row))
        return Field.of(rows)

    def _cosine(self, one: Floats, other: Floats) -> float:
        """Of the angle between two merged models; 1, which mixes linearly, where either is zero."""
        products = [float(np.einsum("pk,pkl,pl->", a, self._products, b)) for a in (one, other) for b in (one, other)]
        norms = np.sqrt(max(products[0], 0.0) * max(products[3], 0.0))
        return products[1] / norms if norms > 0.0 else 1.0

    @cached_property
    def _products(self) -> Floats:
        """Scalar products of the parents at each place, `[P, K, K]`."""
        if self._models.products is None:
            raise ValueError("expected the models' scalar products, which workers measure; got none; start the run")
        parents = [self._pool.index(name) for name in self._names]
        found = np.zeros((self.splits, len(parents), len(parents)))
        index = {(role, layer): place for place, (roles, layer) in enumerate(self._places) for role in roles}
        for role, layer, products in self._models.products:
            found[index[role, layer]] += np.array(products)[np.ix_(parents, parents)]
        return found


def build(config: SplitPointConfig, models: Models, _: int) -> SplitPointSpace:
    """As the configuration describes it; errors as in `SplitPointSpace`."""
    return SplitPointSpace(config, models)
