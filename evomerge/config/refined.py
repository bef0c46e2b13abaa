"""What a user may write about a search from coarse to fine. Knows nothing of how it works."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, WithJsonSchema, model_validator

from evomerge.config.algorithms import AlgorithmConfig, IslandsConfig
from evomerge.config.base import Strict

__all__ = ["RefinedConfig", "StageConfig"]

Count = Annotated[int, Field(ge=1)]


_ANY = WithJsonSchema({"type": "object", "required": ["kind"]})
"""A family that holds this very class: spelled out, its schema would have no end."""


class StageConfig(Strict):
    """One stage of a search from coarse to fine."""

    algorithm: Annotated[AlgorithmConfig, _ANY]
    knots: Count | None = None
    """At most so many over depth, for each parameter; left out in the last stage, which has the space's own."""
    evaluations: Count | None = None
    """Candidates of this stage, in whole generations; left out in the last stage, which takes the rest."""


_STAGES = (
    StageConfig(algorithm=IslandsConfig(kind="islands", population=30), knots=2, evaluations=120),
    StageConfig(algorithm=IslandsConfig(kind="islands", population=60), knots=4, evaluations=240),
    StageConfig(algorithm=IslandsConfig(kind="islands", population=90)),
)


@AlgorithmConfig.register("evomerge.population.refined:build")
class RefinedConfig(AlgorithmConfig):
    """Coarse to fine: each stage searches with more knots, from what the one before found."""

    spaces = ("parameter",)
    kind: Literal["refined"]
    stages: tuple[StageConfig, ...] = _STAGES
    """Left out: islands on 2, on 4 and on the space's own knots, 4 or more, for several objectives."""

    @model_validator(mode="after")
    def _from_coarse_to_fine(self) -> Self:
        if len(self.stages) < 2:
            raise ValueError(f"stages: expected at least 2; got {len(self.stages)}")
        *earlier, last = self.stages
        if last.knots is not None or last.evaluations is not None:
            raise ValueError("stages: the last one has the space's knots and the rest of the budget; leave both out")
        if any(stage.knots is None or stage.evaluations is None for stage in earlier):
            raise ValueError("stages: expected knots and evaluations in each but the last")
        if list(self.knots) != sorted(set(self.knots)):
            raise ValueError(f"stages: expected more knots from stage to stage; got {[*self.knots]}")
        for number, stage in enumerate(earlier):
            first = stage.algorithm.population_at(0)
            if (stage.evaluations or 0) < first:
                raise ValueError(
                    f"stages[{number}]: expected evaluations for one generation of {first}; got {stage.evaluations}"
                )
        if any(isinstance(stage.algorithm, RefinedConfig) for stage in self.stages):
            raise ValueError("stages: expected algorithms that search; got refined inside refined")
        if any(getattr(stage.algorithm, "warm_start", None) for stage in self.stages):
            raise ValueError("stages: each starts from what the one before found; leave warm_start out")
        if any(stage.algorithm.in_flight is not None for stage in self.stages):
            raise ValueError("stages: each takes whole generations from the one before; leave in_flight out")
        return self

    @property
    def knots(self) -> tuple[int, ...]:
        """Knots of each stage but the last."""
        return tuple(stage.knots for stage in self.stages if stage.knots is not None)

    def _at(self, asked: int) -> tuple[int, int]:
        """Which stage comes next when so many were asked, and the size of its next generation."""
        for number, stage in enumerate(self.stages[:-1]):
            spent = 0
            while 0 < (size := stage.algorithm.population_at(spent)) <= (stage.evaluations or 0) - spent:
                if spent == asked:
                    return number, size
                spent += size
            asked -= spent
        return len(self.stages) - 1, self.stages[-1].algorithm.population_at(asked)

    def stage_at(self, asked: int) -> int:
        """The stage of the generation that begins when so many were asked, from 0."""
        return self._at(asked)[0]

    def population_at(self, asked: int) -> int:
        """See `AlgorithmConfig.population_at`."""
        return self._at(asked)[1]

    def misfit(self, objectives: int, genes: int = 1, space: str | None = None) -> str | None:
        """See `AlgorithmConfig.misfit`; the genes of earlier stages are checked when those begin."""
        *earlier, last = (stage.algorithm for stage in self.stages)
        if misfit := super().misfit(objectives, genes, space):
            return misfit
        found = [
            *(algorithm.misfit(objectives, space=space) for algorithm in earlier),
            last.misfit(objectives, genes, space),
        ]
        return next((f"refined: {misfit}" for misfit in found if misfit), None)
