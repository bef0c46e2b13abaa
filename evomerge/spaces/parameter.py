"""Parameter space: one operator whose coefficients vary over layer x module group x expert, with choices beside them.

A searched parameter has, per module group and expert, a few values at equal steps of depth (knots), interpolated
linearly over the layers, and one value each for the embeddings and the output head, unless they take the first layer's.
Fewer knots mean fewer genes and a smoother profile; with one knot per layer nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.errors import ConfigError, Fault
from evomerge.recipe import EDGE_ROLES, OPERATORS, Field, OptionValue, OutputDtype, Recipe, Role, options_of
from evomerge.rng import derive_seed
from evomerge.spaces.base import Gene, Genome, Models
from evomerge.spaces.choices import OPTION, TRANSFORM, choice_genes, choices_of, stranger_faults
from evomerge.spaces.coefficients import starting_values
from evomerge.spaces.knots import Floats, block_diagonal, lift, over_depth

if TYPE_CHECKING:
    from evomerge.config import ParameterSpaceConfig

__all__ = ["ParameterSpace", "build"]


@final
class ParameterSpace:
    """Coefficients of one operator over layer x module group x expert.

    Genes run over parameter, module group, expert, knot, and then over embeddings and head; experts in the given
    order. A gene starts from the configuration's coefficients if they speak of it, else from its own `start`. After
    them come choices: of a transform for each expert, of values for options. Random masks share one seed, so that
    candidates differ by their coefficients and choices alone.

    Args:
        config: operator, knots, groups, ranges.
        base: pool name of the base model.
        experts: pool names of the experts.
        layers: number of layers of every model.
        dtype: dtype of merged weights.
        seed: seed of the run.

    Raises:
        ConfigError: more knots than layers, an operator that cannot take so many experts, experts without a value of
            their own where every one needs one, transforms of experts that are not there, or coefficients to start from
            that do not fit the models.
    """

    def __init__(
        self,
        config: ParameterSpaceConfig,
        *,
        base: str,
        experts: tuple[str, ...],
        layers: int,
        dtype: OutputDtype,
        seed: int,
    ) -> None:
        checks = (_source_faults, _value_faults, stranger_faults)
        if faults := [*chain(*(check(config, experts) for check in checks)), *_knot_faults(config, layers)]:
            raise ConfigError("search space", faults)
        self._config = config
        self._with = partial(ParameterSpace, base=base, experts=experts, layers=layers, dtype=dtype, seed=seed)
        self._operator = OPERATORS[config.operator.name]
        self._base = base if self._operator.needs_base else None
        self._experts = experts
        self._layers = layers
        self._dtype = dtype
        self._mask_seed = derive_seed(seed, "mask") & 0x7FFFFFFF
        self._starts = starting_values(config, {name: self._knots(name) for name in config.genes}, experts, layers)
        self._choices = choices_of(config, experts)
        numbers = (gene for name in config.genes for gene in self._genes_of(name))
        self.genes = (*numbers, *choice_genes(self._choices))
        self.start = Genome(tuple(gene.start for gene in self.genes))
        fixed = self._operator.adjustable.keys() - config.genes.keys()
        self._constants = {name: self._constant(name) for name in fixed}

    def decode(self, genome: Genome) -> Recipe:
        """The recipe of a genome; see `SearchSpace.decode`."""
        if len(genome) != len(self.genes):
            raise ValueError(f"this space has {len(self.genes)} genes; got a genome of {len(genome)}")
        values = (gene.natural(value) for gene, value in zip(self.genes, genome.values, strict=True))
        fields = {name: self._searched(name, values) for name in self._config.genes}
        fields |= self._constants
        chosen = self._chosen(genome)
        options = {name: chosen[f"{OPTION}{name}"] for name in self._operator.options}
        return Recipe(
            operator=self._operator.name,
            options=options_of(self._operator, self._config.operator.preset, **options),
            base=self._base,
            sources=self._experts,
            transforms=tuple(str(chosen[f"{TRANSFORM}{expert}"]) for expert in self._experts),
            space=self._config.operator.space,
            parameters=tuple(sorted(fields.items())),
            mask_seed=self._mask_seed,
            dtype=self._dtype,
        )

    @property
    def known(self) -> tuple[Genome, ...]:
        """Each expert alone, as far as the ranges of weights allow; none where no weights of experts are searched."""
        if "weight" not in self._config.genes or not self._is_per_source("weight"):
            return ()
        owners = [owner for name in self._config.genes for owner in self._owners(name)]
        return tuple(self._alone(expert, owners) for expert in self._experts)

    def _owners(self, name: str) -> Iterator[str | None]:
        """Whose weight each gene of a parameter is, in their order; None for what is no weight."""
        owners: tuple[str | None, ...] = self._experts if name == "weight" else (None,)
        width = len(self._experts) if self._is_per_source(name) else 1
        owners *= width // len(owners)
        for _ in self._config.groups:
            yield from (owner for owner in owners for _ in range(self._knots(name)))
        for _ in EDGE_ROLES if self._has_edges(name) else ():
            yield from owners

    def _alone(self, expert: str, owners: Sequence[str | None]) -> Genome:
        values = list(self.start.values)
        for number, (gene, owner) in enumerate(zip(self.genes, owners, strict=False)):
            if owner is not None:
                natural = min(max(float(owner == expert), gene.low), gene.high)
                values[number] = (natural - gene.low) / (gene.high - gene.low)
        return Genome(tuple(values))

    def coarser(self, knots: int) -> tuple[ParameterSpace, Floats]:
        """The same space with fewer knots, and the matrix that lifts its genomes; see `Layered.coarser`."""
        if knots < 1:
            raise ValueError(f"expected at least one knot; got {knots}")
        genes = {
            name: gene.model_copy(update={"knots": min(knots, self._knots(name))})
            for name, gene in self._config.genes.items()
        }
        space = self._with(self._config.model_copy(update={"genes": genes}))
        blocks = [block for name in genes for block in self._lifts(name, space._knots(name))]
        return space, block_diagonal([*blocks, np.eye(sum(bool(gene.choices) for gene in self.genes))])

    def _lifts(self, name: str, coarse: int) -> Iterator[Floats]:
        """How the genes of one parameter are lifted, in their order: groups by source, then edges."""
        width = len(self._experts) if self._is_per_source(name) else 1
        for _ in range(len(self._config.groups) * width):
            yield lift(coarse, self._knots(name), self._layers)
        yield np.eye(width * len(EDGE_ROLES) * self._has_edges(name))

    def _chosen(self, genome: Genome) -> dict[str, OptionValue]:
        """The value of each choice."""
        pairs = zip(self.genes, genome.values, strict=True)
        picks = {gene.name: gene.index(value) for gene, value in pairs if gene.choices}
        return {name: values[picks.get(name, 0)] for name, values in self._choices.items()}

    def _genes_of(self, name: str) -> Iterator[Gene]:
        low, high = self._config.bounds(name)
        start = self._config.genes[name].start
        usual = self._default(name) if start is None else start
        sources = [f".{expert}" for expert in self._experts] if self._is_per_source(name) else [""]
        knots = range(self._knots(name))
        places = [f".{group}{source}.k{knot}" for group in self._config.groups for source in sources for knot in knots]
        if self._has_edges(name):
            places += [f".{role}{source}" for role in EDGE_ROLES for source in sources]
        for gene in (name + place for place in places):
            natural = min(max(self._starts.get(gene, usual), low), high)
            yield Gene(name=gene, low=low, high=high, start=min((natural - low) / (high - low), 1.0))

    def _searched(self, name: str, values: Iterator[float]) -> Field:
        """One searched parameter; takes its values in the order of its genes."""
        width = len(self._experts) if self._is_per_source(name) else 1
        knots = self._knots(name)
        rows: dict[Role, list[tuple[float, ...]]] = {}
        for roles in self._config.groups.values():
            profiles = [over_depth(tuple(islice(values, knots)), self._layers) for _ in range(width)]
            by_layer = list(zip(*profiles, strict=True))
            rows |= {role: by_layer for role in roles}
        first = rows[next(iter(self._config.groups.values()))[0]][0]
        own = self._has_edges(name)
        return Field.of(rows | {role: [tuple(islice(values, width)) if own else first] for role in EDGE_ROLES})

    def _constant(self, name: str) -> Field:
        if name in self._config.per_expert:
            return Field.constant([self._config.per_expert[name][expert] for expert in self._experts], self._layers)
        value = self._config.fixed.get(name, self._default(name))
        return Field.constant([value] * (len(self._experts) if self._is_per_source(name) else 1), self._layers)

    def _default(self, name: str) -> float:
        default = self._operator.adjustable[name].default
        return 1.0 / len(self._experts) if default is None else default

    def _knots(self, name: str) -> int:
        return _knots(self._config, name, self._layers)

    def _has_edges(self, name: str) -> bool:
        return self._config.genes[name].edges == "own"

    def _is_per_source(self, name: str) -> bool:
        return self._operator.adjustable[name].scope == "source"


def build(config: ParameterSpaceConfig, models: Models, seed: int) -> ParameterSpace:
    """As the configuration describes it; errors as in `ParameterSpace`."""
    return ParameterSpace(
        config, base=models.base, experts=models.experts, layers=models.layers, dtype=models.dtype, seed=seed
    )


def _knots(config: ParameterSpaceConfig, name: str, layers: int) -> int:
    knots = config.genes[name].knots or config.knots
    return layers if knots == "layer" else knots


def _knot_faults(config: ParameterSpaceConfig, layers: int) -> list[Fault]:
    paths = {
        "$.space.knots" if gene.knots is None else f"$.space.genes.{name}.knots": _knots(config, name, layers)
        for name, gene in config.genes.items()
    }
    wanted = f"expected at most {layers}, the models' number of layers"
    return [
        Fault(path=path, message=f"{wanted}; got {knots}; lower it: --set {path.removeprefix('$.')}={layers}")
        for path, knots in paths.items()
        if knots > layers
    ]


def _value_faults(config: ParameterSpaceConfig, experts: tuple[str, ...]) -> list[Fault]:
    message = f"expected one value for each expert ({', '.join(experts)})"
    return [
        Fault(path=f"$.space.per_expert.{name}", message=f"{message}; got {', '.join(values) or 'none'}")
        for name, values in config.per_expert.items()
        if set(values) != set(experts)
    ]


def _source_faults(config: ParameterSpaceConfig, experts: tuple[str, ...]) -> list[Fault]:
    name, most = config.operator.name, OPERATORS[config.operator.name].max_sources
    if most is None or len(experts) <= most:
        return []
    message = (
        f"{name} merges at most {most} expert(s); the pool has {len(experts)} ({', '.join(experts)}); "
        f"remove experts or choose another operator"
    )
    return [Fault(path="$.space.operator.name", message=message)]
