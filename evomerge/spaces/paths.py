"""What spaces of paths share: whose layers a path may take, what lies around it, and paths to begin with.

Knows nothing of genomes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from evomerge.config.faults import near
from evomerge.config.routing import MERGE, PathSpaceConfig, RoutingSpaceConfig
from evomerge.errors import ConfigError, Fault
from evomerge.recipe import Hop

if TYPE_CHECKING:
    from evomerge.spaces.base import Models

__all__ = ["Route", "Stock", "known_paths", "stock_of"]

Route = tuple[Hop, ...]
"""A path with every hop spelled out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stock:
    """The layers that paths are made of, and how long paths may be.

    Attributes:
        names: what may be visited, by the user's names.
        ends: which gives embeddings, last norm and output head; a hop to it has no source.
        layers: of each model.
        fewest, most: layers of a path.
    """

    names: tuple[str, ...]
    ends: str
    layers: int
    fewest: int
    most: int

    @property
    def sources(self) -> tuple[str | None, ...]:
        """The names as hops spell them."""
        return tuple(None if name == self.ends else name for name in self.names)

    @property
    def hops(self) -> tuple[Hop, ...]:
        """All layers, model by model."""
        return tuple(Hop(source=source, layer=layer) for source in self.sources for layer in range(self.layers))

    def named(self, hop: Hop) -> str:
        """A hop's layer as users write it, for example `rev.3`."""
        return f"{self.ends if hop.source is None else hop.source}.{hop.layer}"

    def allows(self, length: int) -> bool:
        """Whether a path may have so many layers."""
        return self.fewest <= length <= self.most


def stock_of(config: PathSpaceConfig, models: Models) -> Stock:
    """What a configuration's paths are made of, over a pool.

    Raises:
        ConfigError: models that the pool does not have.
    """
    pool = (models.base, *models.experts)
    merges = isinstance(config, RoutingSpaceConfig) and config.merge is not None
    known = (MERGE, *pool) if merges else pool
    faults = [*_stranger_faults("models", config.models or (), known)]
    faults += _stranger_faults("ends", () if config.ends is None else (config.ends,), pool)
    if merges and MERGE in pool:
        message = f"with a merge, the name {MERGE!r} stands for it among the models; give the expert another name"
        faults.append(Fault(path="$.pool.experts.merge", message=message))
    if faults:
        raise ConfigError("search space", faults)
    fewest, most = config.lengths(models.layers)
    ends = MERGE if merges else config.ends or models.base
    return Stock(names=config.models or known, ends=ends, layers=models.layers, fewest=fewest, most=most)


def _stranger_faults(key: str, names: Sequence[str], known: Sequence[str]) -> Iterator[Fault]:
    for name in names:
        if name not in known:
            message = f"expected one of {', '.join(known)}; got {name!r}{near(name, known)}"
            yield Fault(path=f"$.space.{key}", message=message)


def known_paths(stock: Stock) -> Iterator[Route]:
    """Paths that are worth a first look and may be as long as they are, the plainest first; at least one.

    Each model's own layers in order; the middle layers of one between the first and last of another (layer swapping,
    Bandarkar et al. 2024); and depth up-scaling (SOLAR, Kim et al. 2024): two copies, the first without its last, the
    second without its first layers, an eighth or a quarter of them.
    """
    layers, sources = stock.layers, sorted(stock.sources, key=lambda source: source is not None)
    pairs = [(one, other) for one in sources for other in sources if one != other]
    if not stock.allows(layers):
        yield _stretched(sources[0], layers, stock.fewest if layers < stock.fewest else stock.most)
    else:
        yield from (_run(source, 0, layers) for source in sources)
        for outer, inner in pairs:
            edge = max(layers // 4, 1)
            if layers > 2 * edge:
                runs = ((outer, 0, edge), (inner, edge, layers - edge), (outer, layers - edge, layers))
                yield tuple(hop for run in runs for hop in _run(*run))
    for share in (4, 8):
        overlap = layers - layers // share
        if stock.allows(2 * overlap) and layers // share:
            for first, second in [*((source, source) for source in sources), *pairs]:
                yield _run(first, 0, overlap) + _run(second, layers - overlap, layers)


def _run(source: str | None, start: int, stop: int) -> Route:
    return tuple(Hop(source=source, layer=layer) for layer in range(start, stop))


def _stretched(source: str | None, layers: int, length: int) -> Route:
    """All of a model's layers, evenly repeated or left out."""
    edges = [round(i * layers / length) for i in range(length + 1)]
    return tuple(Hop(source=source, layer=min(start, layers - 1)) for start, _ in pairwise(edges))
