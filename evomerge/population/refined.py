"""Coarse to fine: what a search with few knots over depth finds is lifted to more knots, where the next one begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, final

import numpy as np

from evomerge.errors import ConfigError, Fault
from evomerge.population.base import Algorithm, Evaluation, Handover, Problem, build_algorithm
from evomerge.population.latent import Floats, lifted
from evomerge.rng import derive_seed
from evomerge.spaces import Genome, Layered, SearchSpace

if TYPE_CHECKING:
    from evomerge.config import RefinedConfig, StageConfig

__all__ = ["Refined", "build"]

_DETAIL = 0.05
"""Standard deviation, in latent space, that a distribution gets for what the knots before could not express."""


@final
class Refined(Algorithm):
    """Stages, each an algorithm on the space with so many knots.

    The genomes of all stages are told and answered in the genes of the space itself. Between stages, what the earlier
    one hands over is lifted through the interpolation: its genomes, which genetic algorithms take as their first
    generation, and its distribution, which CMA-ES goes on with (`evomerge.population.latent.lifted`); other algorithms
    start from its best answer. Scores are not handed over: what is kept is asked again, on new items.

    Args:
        config: the stages.
        problem: over the space with all its knots.

    Raises:
        ValueError: a space without knots.
        ConfigError: stages that cannot take their genes or the objectives.
    """

    def __init__(self, config: RefinedConfig, problem: Problem) -> None:
        if not isinstance(problem.space, Layered):
            raise ValueError("refined needs a space with knots over depth, such as kind: parameter; choose one")
        self._config = config
        self._problem = problem
        self._layered = problem.space
        coarse = [self._layered.coarser(knots) for knots in config.knots]
        self._spaces = [*(space for space, _ in coarse), problem.space]
        self._lifts = [lift for _, lift in coarse]
        self._check()
        self._asked_so_far = self._number = 0
        self.population = config.population_at(0)
        self._stage = self._begun(None)
        self._left: tuple[Genome, ...] = ()

    def _check(self) -> None:
        stages = zip(self._config.stages, self._spaces, strict=True)
        misfits = [self._misfit(stage, space) for stage, space in stages]
        if faults := [Fault(path=f"$.algorithm.stages[{i}]", message=text) for i, text in enumerate(misfits) if text]:
            raise ConfigError("algorithm", faults)

    def _misfit(self, stage: StageConfig, space: SearchSpace) -> str | None:
        """Why a stage cannot be; None if it can."""
        if stage.knots is not None and stage.knots > 1:
            coarser, _ = self._layered.coarser(stage.knots - 1)
            if len(coarser.genes) == len(space.genes):
                return (
                    f"expected at most as many knots as the space has; got {stage.knots}; lower it, or drop the stage"
                )
        needed = stage.algorithm.least([len(gene.choices) for gene in space.genes])
        if stage.evaluations is not None and stage.evaluations < needed:
            return f"{stage.algorithm.kind} needs {needed:,} evaluations here; got {stage.evaluations:,}"
        return stage.algorithm.misfit(self._problem.objectives, len(space.genes))

    def answer(self) -> tuple[Genome, ...]:
        """See `Algorithm.answer`: the stage's, or that of the one before while nothing was told in this one."""
        return self._up(self._stage.answer()) or self._left

    def state(self) -> dict[str, float]:
        """See `Algorithm.state`: the stage, counted from 1, and its algorithm's."""
        return {"stage": self._number + 1.0, **self._stage.state()}

    def _propose(self) -> tuple[Genome, ...]:
        if self._config.stage_at(self._asked_so_far) != self._number:
            self._advance()
        self._asked_small = self._stage.ask()
        return self._up(self._asked_small)

    def _learn(self, evaluations: Sequence[Evaluation]) -> None:
        told = zip(evaluations, self._asked_small, strict=True)
        self._stage.tell([replace(evaluation, genome=genome) for evaluation, genome in told])
        self._asked_so_far += len(evaluations)
        self.population = self._config.population_at(self._asked_so_far)

    def _up(self, genomes: Sequence[Genome]) -> tuple[Genome, ...]:
        """Genomes of the stage in the genes of the space."""
        if self._number == len(self._lifts):
            return tuple(genomes)
        return _lifted(genomes, self._lifts[self._number])

    def _advance(self) -> None:
        """From one stage to the next."""
        self._left, found = self.answer(), self._stage.handover()
        _, step = self._spaces[self._number + 1].coarser(self._config.knots[self._number])
        spreads = tuple(lifted(spread, step, _DETAIL) for spread in found.spreads)
        self._number += 1
        self._stage = self._begun(Handover(genomes=_lifted(found.genomes, step), spreads=spreads))

    def _begun(self, handover: Handover | None) -> Algorithm:
        """A stage, which starts where the one before ended."""
        stage, space = self._config.stages[self._number], self._spaces[self._number]
        start = handover.genomes[0] if handover and handover.genomes else space.start
        problem = replace(
            self._problem,
            space=_From(space, start),
            seed=derive_seed(self._problem.seed, "stage", self._number),
            earlier=(),
            handover=handover,
        )
        return build_algorithm(stage.algorithm, problem)


class _From:
    """A space whose search starts elsewhere."""

    def __init__(self, space: SearchSpace, start: Genome) -> None:
        self.genes, self.start, self.decode = space.genes, start, space.decode


def _lifted(genomes: Sequence[Genome], lift: Floats) -> tuple[Genome, ...]:
    """What least squares carry over the border of the box is drawn back to it."""
    rows = (np.clip(lift @ np.array(genome.values), 0.0, 1.0) for genome in genomes)
    return tuple(Genome(tuple(row)) for row in rows)


def build(config: RefinedConfig, problem: Problem) -> Refined:
    """As the configuration describes it."""
    return Refined(config, problem)
