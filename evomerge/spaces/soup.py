"""Soup space: which of many checkpoints are averaged, and with what shares (Recycle, arXiv 2412.04144).

Shares sum to one at every depth. A share that is zero throughout leaves its checkpoint out of the recipe, so that a
merge reads what it needs and no more. Knows nothing of weights.

Legend: K checkpoints, `u_k` gene of checkpoint k, `a_k` its share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.errors import ConfigError, Fault
from evomerge.recipe import DEPTH_ROLES, OPERATORS, Field, Recipe, Role, options_of, uniform
from evomerge.spaces.base import Gene, Genome, Models
from evomerge.spaces.crossing import Floats, crossed
from evomerge.spaces.knots import over_depth

if TYPE_CHECKING:
    from evomerge.config import SoupConfig

__all__ = ["SoupSpace"]

_STEEPNESS = 8.0
"""How far genes spread shares: of two checkpoints with genes 1 and 0.5, the first counts 56 times as much."""

_DECIMALS = OPERATORS["linear"].parameters["weight"].decimals
"""Places behind the point that a recipe keeps of a share."""

_SIGNED = (-1.0, 1.0)
"""Range of signed shares, before they are shifted to a sum of one."""


@final
class SoupSpace:
    """Shares of K experts that sum to one, at a few knots over depth, and whether each expert enters at all.

    On the simplex, `a_k = expm1(8 u_k) / sum_i expm1(8 u_i)`: a softmax whose shares reach zero, at `u_k = 0`, and so
    every face and corner. Signed: `a_k = s_k + (1 - sum_i s_i) / K` with `s_k = 2 u_k - 1`. Where all are zero, or no
    expert is chosen, all count alike. Embeddings take the first knot's shares, the output head the last one's.

    Genes run over experts and knots, then over experts that may be chosen. The search starts from the uniform average
    of all; it knows the experts themselves.

    Args:
        config: shares, knots and whether experts are chosen.
        models: what is merged; the base takes no part.

    Raises:
        ConfigError: a single expert, or more knots than layers.
    """

    def __init__(self, config: SoupConfig, models: Models) -> None:
        if faults := [*_faults(config, models.experts, models.layers)]:
            raise ConfigError("search space", faults)
        self._config = config
        self._models = models
        self._experts = models.experts
        self.genes = tuple(self._genes())
        self.start = Genome(tuple(gene.start for gene in self.genes))

    @property
    def known(self) -> tuple[Genome, ...]:
        """Each expert alone."""
        return tuple(self._encoded(np.tile(row, (self.splits, 1))) for row in np.eye(len(self._experts)))

    @property
    def splits(self) -> int:
        """Number of knots."""
        return self._config.knots

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome; see `SearchSpace.decode`. An expert alone is recorded as the anchor that it is."""
        shares = np.round(self._shares(genome), _DECIMALS)
        used = [k for k in range(len(self._experts)) if shares[:, k].any()]
        names = [self._experts[k] for k in used]
        if len(used) == 1:
            return uniform(names, layers=self._models.layers, dtype=self._models.dtype)
        profiles = [over_depth(shares[:, k].tolist(), self._models.layers) for k in used]
        by_layer = tuple(zip(*profiles, strict=True))
        rows: dict[Role, Sequence[tuple[float, ...]]] = dict.fromkeys(DEPTH_ROLES, by_layer)
        rows |= {"embed": by_layer[:1], "head": by_layer[-1:]}
        return Recipe(
            operator="linear",
            options=options_of(OPERATORS["linear"], "paper"),
            base=None,
            sources=tuple(names),
            parameters=(("weight", Field.of(rows)),),
            dtype=self._models.dtype,
        )

    def cross(self, first: Genome, second: Genome, *, split: int, share: float) -> Genome:
        """A child of two genomes, mixed linearly; see `Breeding.cross`. Signed shares end at -1 and 1."""
        return self._encoded(crossed(self._shares(first), self._shares(second), split=split, share=share))

    def _genes(self) -> Iterator[Gene]:
        count = len(self._experts)
        start = 0.5 if self._config.shares == "simplex" else (1.0 / count - _SIGNED[0]) / (_SIGNED[1] - _SIGNED[0])
        low, high = (0.0, 1.0) if self._config.shares == "simplex" else _SIGNED
        for name in self._experts:
            for knot in range(self.splits):
                yield Gene(name=f"share.{name}.k{knot}", low=low, high=high, start=start)
        for name in self._experts if self._config.select else ():
            yield Gene(name=f"select.{name}", low=0.0, high=1.0, start=0.75, choices=("out", "in"))

    def _shares(self, genome: Genome) -> Floats:
        """Shares by knot and expert; rows sum to one."""
        if len(genome) != len(self.genes):
            raise ValueError(f"this space has {len(self.genes)} genes; got a genome of {len(genome)}")
        count = len(self._experts)
        values = np.array(genome.values)
        latent = values[: count * self.splits].reshape(count, self.splits).T
        chosen = values[count * self.splits :] >= 0.5 if self._config.select else np.ones(count, dtype=bool)
        chosen = chosen if chosen.any() else ~chosen
        if self._config.shares == "signed":
            signed = np.where(chosen, _SIGNED[0] + latent * (_SIGNED[1] - _SIGNED[0]), 0.0)
            return np.asarray(signed + chosen * (1.0 - signed.sum(axis=1, keepdims=True)) / chosen.sum())
        weights = np.where(chosen, np.expm1(_STEEPNESS * latent), 0.0)
        weights = np.where(weights.any(axis=1, keepdims=True), weights, chosen)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def _encoded(self, shares: Floats) -> Genome:
        """A genome of given shares, whose rows sum to one."""
        if self._config.shares == "signed":
            latent = (shares - _SIGNED[0]) / (_SIGNED[1] - _SIGNED[0])
        else:
            latent = np.log1p(shares / shares.max(axis=1, keepdims=True) * math.expm1(_STEEPNESS)) / _STEEPNESS
        chosen = np.where(shares.any(axis=0), 0.75, 0.25) if self._config.select else np.empty(0)
        return Genome(tuple(np.clip(np.concatenate([latent.T.ravel(), chosen]), 0.0, 1.0)))


def build(config: SoupConfig, models: Models, _: int) -> SoupSpace:
    """As the configuration describes it; errors as in `SoupSpace`."""
    return SoupSpace(config, models)


def _faults(config: SoupConfig, experts: tuple[str, ...], layers: int) -> Iterator[Fault]:
    if len(experts) < 2:
        yield Fault(path="$.pool.experts", message=f"a soup takes two experts or more; got {', '.join(experts)}")
    if config.knots > layers:
        wanted = f"expected at most {layers}, the models' number of layers"
        message = f"{wanted}; got {config.knots}; lower it: --set space.knots={layers}"
        yield Fault(path="$.space.knots", message=message)
