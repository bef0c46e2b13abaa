"""Layer routing: which layer of which model runs at each depth, alone or together with a merge's parameters.

A path has slots, each empty or with a layer of a model, in any order and as often as it likes. Its genome has a choice
for each slot and, where scales are searched, the logarithm of what the residual stream is multiplied with before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

from evomerge.errors import ConfigError, Fault
from evomerge.recipe import Hop, Recipe, uniform
from evomerge.spaces import parameter
from evomerge.spaces.base import Gene, Genome, Models
from evomerge.spaces.paths import Route, Stock, known_paths, stock_of

if TYPE_CHECKING:
    from evomerge.config import RoutingSpaceConfig

__all__ = ["EMPTY", "RoutingSpace", "build"]

EMPTY = "-"
"""The choice of a slot that holds no layer."""


@final
class RoutingSpace:
    """Paths through the layers of several models.

    Decoding drops empty slots. A path with too few layers is repaired: its first empty slots go on with the next layer
    of the model before. Genes run over the slots, choice and scale of each, and then over the merge, if there is one.

    Args:
        config: models, lengths, scales.
        models: the pool.
        seed: seed of the run.

    Attributes:
        stock: whose layers there are, and how long paths may be.
        aligned: whether depth j takes layer j of some model.
        scales: lowest and highest scale; both 1 if nothing is scaled.
        slots: how many of the genes describe the path; the others are the merge's.

    Raises:
        ConfigError: models that the pool does not have, aligned paths of another length than the models' or through
            one alone, or a merge that contradicts the pool.
    """

    def __init__(self, config: RoutingSpaceConfig, models: Models, seed: int) -> None:
        self.stock = stock_of(config, models)
        self.aligned = config.aligned
        if self.aligned and (faults := list(_alignment_faults(self.stock))):
            raise ConfigError("search space", faults)
        self.scales = (1.0, 1.0) if config.scales is None else (config.scales.low, config.scales.high)
        self._logarithms = None if config.scales is None else config.scales.logarithms
        self._merge = config.merge and parameter.build(config.merge, models, seed)
        self._plain = uniform((self.stock.ends,), layers=models.layers, dtype=models.dtype)
        merge_genes = self._merge.genes if self._merge else ()
        self._choices = [self._choices_at(slot) for slot in range(self.stock.most)]
        paths = tuple(known_paths(self.stock))
        starts = self._values_of(paths[0])
        path_genes = [replace(gene, start=start) for gene, start in zip(self._path_genes(), starts, strict=True)]
        self.slots = len(path_genes)
        self.genes = (*path_genes, *merge_genes)
        self.start = Genome(tuple(gene.start for gene in self.genes))
        self.known = tuple(self.genome_of(path, self.start) for path in paths)

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome; see `SearchSpace.decode`."""
        path = self.path_of(genome)
        merged = self._merge.decode(Genome(genome.values[self.slots :])) if self._merge else self._plain
        return replace(merged, path=path)

    def path_of(self, genome: Genome) -> Route:
        """The path that a genome stands for, with every hop spelled out.

        Raises:
            ValueError: a genome of another length.
        """
        if len(genome) != len(self.genes):
            raise ValueError(f"this space has {len(self.genes)} genes; got a genome of {len(genome)}")
        hops = list(self._slots(genome))
        lack = self.stock.fewest - sum(hop is not None for hop in hops)
        path: list[Hop] = []
        for hop in hops:
            if hop is not None:
                path.append(hop)
            elif lack > 0:
                path.append(self._next(path))
                lack -= 1
        return tuple(path)

    def genome_of(self, path: Route, genome: Genome) -> Genome:
        """The plainest genome of a path: hops in the first slots, the others empty.

        Args:
            path: as `path_of` gives it.
            genome: gives the merge's genes.

        Raises:
            ValueError: a path that is not in this space.
        """
        return Genome((*self._values_of(path), *genome.values[self.slots :]))

    def _choices_at(self, slot: int) -> tuple[Hop | None, ...]:
        """What a slot may hold."""
        if self.aligned:
            return tuple(Hop(source=source, layer=slot) for source in self.stock.sources)
        return (None, *self.stock.hops)

    def _path_genes(self) -> Iterator[Gene]:
        for slot, hops in enumerate(self._choices):
            told = tuple(EMPTY if hop is None else self.stock.named(hop) for hop in hops)
            yield Gene(name=f"layer.{slot}", low=0.0, high=1.0, start=0.0, choices=told)
            if self._logarithms is not None:
                low, high = self._logarithms
                yield Gene(name=f"log_scale.{slot}", low=low, high=high, start=0.0)

    def _slots(self, genome: Genome) -> Iterator[Hop | None]:
        """What each slot holds."""
        genes = iter(zip(self.genes, genome.values, strict=True))
        for hops in self._choices:
            gene, value = next(genes)
            hop = hops[gene.index(value)]
            if self._logarithms is not None:
                gene, value = next(genes)
                hop = hop and replace(hop, scale=math.exp(gene.natural(value)))
            yield hop

    def _next(self, path: Sequence[Hop]) -> Hop:
        """What continues a path; its last layer once more where the model has no further one."""
        if not path:
            return Hop(source=self.stock.sources[0], layer=0)
        return Hop(source=path[-1].source, layer=min(path[-1].layer + 1, self.stock.layers - 1))

    def _values_of(self, path: Route) -> list[float]:
        if not self.stock.allows(len(path)):
            raise ValueError(f"paths here have {self.stock.fewest} to {self.stock.most} layers; got {len(path)}")
        values: list[float] = []
        for slot, hops in enumerate(self._choices):
            hop = path[slot] if slot < len(path) else None
            plain = hop and replace(hop, scale=1.0)
            if plain not in hops:
                raise ValueError(f"slot {slot} does not take {hop}")
            values.append((hops.index(plain) + 0.5) / len(hops))
            if self._logarithms is not None:
                values.append(_share(1.0 if hop is None else hop.scale, *self._logarithms))
            elif hop is not None and hop.scale != 1.0:
                raise ValueError(f"this space does not scale; got {hop}")
        return values


def _alignment_faults(stock: Stock) -> Iterator[Fault]:
    if (stock.fewest, stock.most) != (stock.layers, stock.layers):
        message = f"aligned paths of these models have {stock.layers} layers; got {stock.most}; leave it out"
        yield Fault(path="$.space.fewest", message=message)
    if len(stock.names) < 2:
        message = f"aligned paths choose between two models or more; got {stock.names[0]}; name another"
        yield Fault(path="$.space.models", message=message)


def build(config: RoutingSpaceConfig, models: Models, seed: int) -> RoutingSpace:
    """As the configuration describes it; errors as in `RoutingSpace`."""
    return RoutingSpace(config, models, seed)


def _share(scale: float, low: float, high: float) -> float:
    """Where a scale lies between two logarithms, from 0 to 1."""
    return min(max((math.log(scale) - low) / (high - low), 0.0), 1.0)
