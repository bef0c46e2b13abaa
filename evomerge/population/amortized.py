"""Amortised Pareto fronts (MAP): quadratic models of the objectives, searched in place of the models themselves.

After Li et al. 2025, "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation" (arXiv
2406.07529). The paper answers with the front of the models; here a model's word alone is never an answer: what it
proposes is verified, and the verified front is the answer, the knee first, then the loneliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

import numpy as np

from evomerge.pareto import shortlist
from evomerge.population.base import Algorithm, Evaluation, Problem
from evomerge.population.latent import Floats
from evomerge.population.trust_region import TrustRegion
from evomerge.rng import derive_seed
from evomerge.spaces import Gene, Genome

if TYPE_CHECKING:
    from evomerge.config import Acquisition, MapConfig

__all__ = ["Map", "NestedMap", "build"]

_SAMPLES = 2
"""Points for each unknown before a group of inputs is merged, as many as the paper takes: half of them to fit, and half
of them proposals that were verified."""


_STILL = 1e-9
"""A gene that differs by no more does not move."""


@final
class Map(Algorithm):
    """A trust region over all genes; see `TrustRegion`.

    Args:
        start: centre of the first region; few genes.
        objectives: number of costs of each genome.
        population: genomes per generation.
        acquisition: what is proposed; see `TrustRegion`.
        seed: seed of the run.
    """

    def __init__(
        self, *, start: Genome, objectives: int, population: int, acquisition: Acquisition = "mean", seed: int
    ) -> None:
        self.population = population
        self._region = TrustRegion(
            start=np.array(start.values), objectives=objectives, acquisition=acquisition, seed=seed
        )

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return _front([Genome(tuple(row)) for row in self._region.points], self._region.costs)

    def _propose(self) -> tuple[Genome, ...]:
        return tuple(Genome(tuple(row)) for row in self._region.propose(self.population))

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        points = np.array([evaluation.genome.values for evaluation in evaluations])
        self._region.learn(points, np.array([evaluation.costs for evaluation in evaluations]))


@final
class NestedMap(Algorithm):
    """Nested merging (section 3.3 of the paper): few models are merged at a time, and the merges are merged in turn.

    On each level, the inputs are cut into groups in their order, and a trust region is searched over the coefficients
    of each group: one for each of its inputs, which scales how far that lies from the origin. Groups share the
    generations. When each was told twice as many points as its models have unknowns, the best of each, by the weighted
    mean of what was verified, is an input of the next level. The last level, of a single group, goes on to the end.

    So many models cost few candidates: N inputs in pairs about 12 N, where one quadratic of all has N^2 / 2 unknowns.

    Args:
        inputs: genomes of the first level, such as each expert alone; two or more.
        origin: what is left of an input when its coefficient is 0.
        weights: one per objective; which of a group's merges goes on.
        size: most inputs of a group, two or more.
        population: genomes per generation.
        acquisition: what is proposed; see `TrustRegion`.
        seed: seed of the run.
    """

    def __init__(
        self,
        *,
        inputs: Sequence[Genome],
        origin: Genome,
        weights: tuple[float, ...],
        size: int,
        population: int,
        acquisition: Acquisition,
        seed: int,
    ) -> None:
        self.population = population
        self._origin = np.array(origin.values)
        self._weights = weights
        self._size = size
        self._acquisition = acquisition
        self._seed = seed
        self._level = 0
        self._dealt = 0
        self._told: list[Evaluation] = []
        self._points: dict[int, Floats] = {}
        self._groups = self._grouped([np.array(genome.values) for genome in inputs])

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`."""
        return _front([e.genome for e in self._told], np.array([e.costs for e in self._told]))

    def _propose(self) -> tuple[Genome, ...]:
        self._points = {
            number: self._groups[number].region.propose(len(slots)) for number, slots in self._slots().items()
        }
        rows: dict[int, Genome] = {}
        for number, slots in self._slots().items():
            rows |= dict(zip(slots, map(self._groups[number].genome, self._points[number]), strict=True))
        return tuple(rows[slot] for slot in range(self.population))

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        costs = np.array([evaluation.costs for evaluation in evaluations])
        for number, slots in self._slots().items():
            self._groups[number].region.learn(self._points[number], costs[slots])
        self._told += evaluations
        self._dealt += self.population
        if len(self._groups) > 1 and all(group.is_known for group in self._groups):
            self._level += 1
            self._dealt = 0
            self._groups = self._grouped([group.merged(self._weights) for group in self._groups])

    def _slots(self) -> dict[int, list[int]]:
        """Places in the present generation by group, dealt in turn; a single input is left as it is."""
        searched = [number for number, group in enumerate(self._groups) if len(group.inputs) > 1]
        slots: dict[int, list[int]] = {}
        for slot in range(self.population):
            slots.setdefault(searched[(self._dealt + slot) % len(searched)], []).append(slot)
        return slots

    def _grouped(self, inputs: list[Floats]) -> list[_Group]:
        """Neighbours, in groups as equal as can be."""
        parts = np.array_split(np.array(inputs), -(-len(inputs) // self._size))
        seeds = [derive_seed(self._seed, "nested map", self._level, number) for number in range(len(parts))]
        objectives = len(self._weights)
        return [
            _Group.of(part, self._origin, objectives=objectives, acquisition=self._acquisition, seed=seed)
            for part, seed in zip(parts, seeds, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Group:
    """Inputs that are merged with each other, and the region of their coefficients.

    A coordinate of the region runs over all coefficients that keep its input, alone, in the box of genomes.

    Attributes:
        inputs: `(k, d)`.
        origin: `(d,)`.
        low, high: `(k,)`, coefficients at 0 and at 1.
        region: over k coordinates; starts at the average of the inputs.
    """

    inputs: Floats
    origin: Floats
    low: Floats
    high: Floats
    region: TrustRegion

    @classmethod
    def of(cls, inputs: Floats, origin: Floats, *, objectives: int, acquisition: Acquisition, seed: int) -> Self:
        """A group that was told nothing."""
        low, high = _within(origin, inputs - origin)
        start = (1.0 / len(inputs) - low) / (high - low)
        region = TrustRegion(start=start, objectives=objectives, acquisition=acquisition, seed=seed)
        return cls(inputs=inputs, origin=origin, low=low, high=high, region=region)

    @property
    def is_known(self) -> bool:
        """Whether it was told enough to be merged."""
        return len(self.inputs) == 1 or len(self.region.points) >= _SAMPLES * self.region.unknowns

    def genome(self, point: Floats) -> Genome:
        """The genome of a point of the region; within the box where the inputs together lead out of it."""
        coefficients = self.low + point * (self.high - self.low)
        values = self.origin + coefficients @ (self.inputs - self.origin)
        return Genome(tuple(np.clip(values, 0.0, 1.0)))

    def merged(self, weights: tuple[float, ...]) -> Floats:
        """What goes on to the next level."""
        best = self.inputs[0] if len(self.inputs) == 1 else self.genome(self.region.best(weights)).values
        return np.array(best)


def _within(origin: Floats, steps: Floats) -> tuple[Floats, Floats]:
    """`(k,)` each: least and largest factor of each step from the origin that stays in the unit box; 0 and 1 for none.

    Args:
        origin: `(d,)`, in the box.
        steps: `(k, d)`.
    """
    ahead, behind = (np.where(steps > 0.0, room, 1.0 - room) for room in (1.0 - origin, origin))
    sizes = np.abs(steps)
    moves = sizes > _STILL
    low, high = (
        np.min(room / np.where(moves, sizes, 1.0), axis=1, initial=np.inf, where=moves) for room in (behind, ahead)
    )
    return np.where(np.isfinite(low), -low, 0.0), np.where(np.isfinite(high), high, 1.0)


def _front(genomes: Sequence[Genome], costs: Floats) -> tuple[Genome, ...]:
    """The verified front, in the order in which it deserves a confirmation."""
    return tuple(dict.fromkeys(genomes[i] for i in shortlist(costs)))


def _origin(genes: Sequence[Gene], inputs: Sequence[Genome]) -> Genome:
    """What all inputs have in common; where they differ, the natural zero, or what is closest to it."""
    values = []
    for gene, column in zip(genes, zip(*(genome.values for genome in inputs), strict=True), strict=True):
        zero = min(max(0.0, gene.low), gene.high)
        values.append(column[0] if len(set(column)) == 1 else (zero - gene.low) / (gene.high - gene.low))
    return Genome(tuple(values))


def build(config: MapConfig, problem: Problem) -> Map | NestedMap:
    """As the configuration describes it.

    Raises:
        ValueError: nested merging in a space that does not know the models that it merges.
    """
    if config.nested is None:
        return Map(
            start=problem.space.start,
            objectives=problem.objectives,
            population=config.population,
            acquisition=config.acquisition,
            seed=problem.seed,
        )
    if len(problem.known) < 2:
        raise ValueError(
            "map with nested merging needs the weights of two experts or more among the genes; got "
            f"{len(problem.known)} that differ; add `weight` to `genes`, in a range that begins below 1 and ends above "
            "0, or leave `nested` out"
        )
    return NestedMap(
        inputs=problem.known,
        origin=_origin(problem.space.genes, problem.known),
        weights=problem.weights,
        size=config.nested,
        population=config.population,
        acquisition=config.acquisition,
        seed=problem.seed,
    )
