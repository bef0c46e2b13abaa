"""Layer routing in the published encoding (Akiba et al. 2024, "Evolutionary Optimization of Model Merging Recipes").

All layers of all models stand in a row, several times over; an indicator for each says whether it is used. So a path
keeps the order of the row. Scales depend on the two layers that follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

from evomerge.errors import ConfigError, Fault
from evomerge.recipe import Recipe, uniform
from evomerge.spaces.base import Gene, Genome, Models
from evomerge.spaces.paths import Route, Stock, known_paths, stock_of
from evomerge.spaces.transitions import ScaleMatrix, ScaleNetwork, Scales

if TYPE_CHECKING:
    from evomerge.config import IndicatorSpaceConfig

__all__ = ["IndicatorSpace", "build"]

_USED, _PASSED = 0.75, 0.25
"""Indicators of a first path; what is above one half is used."""


@final
class IndicatorSpace:
    """A row of layers, each used or passed by.

    Decoding uses the slots whose indicators are above one half. Where those are too few, the highest others join them;
    where they are too many, the lowest are left out. The first layer of a path is never scaled. Genes run over the row
    and then over the scales.

    Args:
        config: models, repeats, lengths, scales.
        models: the pool.

    Raises:
        ConfigError: models that the pool does not have, or a shortest path that is longer than the row.
    """

    def __init__(self, config: IndicatorSpaceConfig, models: Models) -> None:
        self._stock = stock_of(config, models)
        self._row = self._stock.hops * config.repeats
        if self._stock.fewest > len(self._row):
            message = f"the row holds {len(self._row)} layers; got {self._stock.fewest}; lower it or raise repeats"
            raise ConfigError("search space", [Fault(path="$.space.fewest", message=message)])
        self._plain = uniform((self._stock.ends,), layers=models.layers, dtype=models.dtype)
        self._scales = _scales_of(config, self._stock)
        rows = [row for path in known_paths(self._stock) if (row := self._indicators(path))]
        rows = rows or [[_PASSED] * len(self._row)]
        scale_genes = () if self._scales is None else self._scales.genes
        self.genes = (*self._use_genes(rows[0]), *scale_genes)
        unscaled = [gene.start for gene in scale_genes]
        self.known = tuple(Genome((*row, *unscaled)) for row in rows)
        self.start = self.known[0]

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome; see `SearchSpace.decode`."""
        if len(genome) != len(self.genes):
            raise ValueError(f"this space has {len(self.genes)} genes; got a genome of {len(genome)}")
        indicators, values = genome.values[: len(self._row)], genome.values[len(self._row) :]
        slots = self._used(indicators)
        path = [self._row[slot] for slot in slots]
        if self._scales is not None:
            layers = [slot % len(self._stock.hops) for slot in slots]
            places = [slot / len(self._row) for slot in slots]
            scales = [1.0, *self._scales.after(layers, places, values)]
            path = [replace(hop, scale=scale) for hop, scale in zip(path, scales, strict=True)]
        return replace(self._plain, path=tuple(path))

    def _used(self, indicators: Sequence[float]) -> list[int]:
        """Slots of the row that make up the path, in order."""
        highest_first = sorted(range(len(indicators)), key=lambda slot: -indicators[slot])
        wanted = sum(value > 0.5 for value in indicators)
        return sorted(highest_first[: min(max(wanted, self._stock.fewest), self._stock.most)])

    def _indicators(self, path: Route) -> list[float]:
        """Indicators of a path, each hop in the first slot that is left; none if the row does not hold it."""
        values, slot = [_PASSED] * len(self._row), 0
        for hop in path:
            if hop not in self._row[slot:]:
                return []
            slot = self._row.index(hop, slot) + 1
            values[slot - 1] = _USED
        return values

    def _use_genes(self, starts: Sequence[float]) -> list[Gene]:
        many = len(self._stock.hops)
        names = [f"use.{self._stock.named(hop)}.r{slot // many}" for slot, hop in enumerate(self._row)]
        return [Gene(name=name, low=0.0, high=1.0, start=start) for name, start in zip(names, starts, strict=True)]


def _scales_of(config: IndicatorSpaceConfig, stock: Stock) -> Scales | None:
    if config.scales is None:
        return None
    if config.scaling == "network":
        return ScaleNetwork(len(stock.hops), config.scales.logarithms, config.hidden)
    return ScaleMatrix([stock.named(hop) for hop in stock.hops], config.scales.logarithms)


def build(config: IndicatorSpaceConfig, models: Models, _: int) -> IndicatorSpace:
    """As the configuration describes it; errors as in `IndicatorSpace`."""
    return IndicatorSpace(config, models)
