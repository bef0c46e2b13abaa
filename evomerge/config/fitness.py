"""What a user may write about a fitness: what is measured, on how many items, and how sure the verdict must be.

Knows nothing of files, benchmarks or scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Finite, Name, Strict
from evomerge.config.faults import near
from evomerge.config.measured import ConstraintConfig, Measured, Metric, ObjectiveConfig
from evomerge.config.scorers import ScorerConfig, TextConfig
from evomerge.config.screening import ScreenConfig

__all__ = [
    "ConfirmConfig",
    "EstimatorConfig",
    "FitnessConfig",
    "IrtConfig",
    "ItemsConfig",
    "MeanConfig",
    "RaceConfig",
]


class ItemsConfig(Strict):
    """How many items score a candidate, and how many are kept back."""

    search: Annotated[int, Field(ge=2)]
    """Items per task and candidate during the search."""
    confirm: Annotated[int, Field(ge=2)]
    """Items per task that only the final confirmation uses; never seen by the search."""
    draw: Literal["fresh", "fixed"] = "fresh"
    """`fresh`: a new draw each generation, shared inside it, or, without generations, for each `population` candidates
    in the order of their numbers; `fixed`: one draw for the whole run."""


class MeanConfig(Strict):
    """A score is the mean of the answers."""

    kind: Literal["mean"] = "mean"


class IrtConfig(Strict):
    """A score is what a model of items and abilities makes of the answers (item response theory).

    Items are chosen for each candidate by what they tell about its score. Anchors answer everything that the estimates
    speak of; the model is fitted to them and to all candidates, and fitted again as the search goes on.
    """

    kind: Literal["irt"]
    banks: tuple[Path, ...] = ()
    """Item banks, as `evomerge bank fit` writes them; a task and metric without one is calibrated on the fly."""
    universe: Annotated[int, Field(ge=8)] = 400
    """Most items per task that the estimates speak of; anchors and promoted candidates answer all of them."""
    audit: Annotated[Finite, Field(gt=0, le=0.5)] = 0.2
    """Share of a candidate's items that is drawn at random, to check the model."""
    promote: Annotated[int, Field(ge=0)] = 2
    """Candidates of each generation that answer everything: those most likely on the front."""


EstimatorConfig = Annotated[MeanConfig | IrtConfig, Field(discriminator="kind")]


class RaceConfig(Strict):
    """Items are asked in portions; only candidates whose fate is open get the next one."""

    kind: Literal["open", "halving"] = "open"
    """`open`: those that may or may not survive, or belong on the front. `halving`: the better half each time."""
    rounds: Annotated[int, Field(ge=2)] = 3
    """Portions that `items.search` is asked in."""
    sure: Annotated[Finite, Field(gt=0.5, lt=1.0)] = 0.95
    """A candidate is decided from this probability on, for or against."""
    target_sd: Annotated[Finite, Field(ge=0)] = 0.02
    """Scores known this well are not asked further."""


class ConfirmConfig(Strict):
    """What is re-scored at the end, and how sure the verdict must be."""

    shortlist: Annotated[int, Field(ge=1)] = 12
    """Most candidates of the final front that are confirmed, beside the anchors."""
    level: Annotated[Finite, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence level of the intervals."""


class FitnessConfig(Strict):
    """What makes a merged model good."""

    tasks: tuple[Path, ...] = ()
    """Files or folders with lm-eval task YAMLs."""
    scorers: dict[Name, ScorerConfig] = {}
    """Tasks that lm-eval does not know, by name: your own functions, loss and divergence on a text."""
    objectives: Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1)]
    constraints: tuple[ConstraintConfig, ...] = ()
    """Limits that every candidate must keep."""
    items: ItemsConfig
    estimator: EstimatorConfig = MeanConfig()
    """How answers become scores."""
    race: RaceConfig | None = None
    """Left out: every candidate answers `items.search` items."""
    confirm: ConfirmConfig = ConfirmConfig()
    screen: ScreenConfig | None = None
    """Left out: every candidate is scored."""
    chat_template: bool = False
    """Wrap prompts in the models' chat template."""

    @field_validator("objectives")
    @classmethod
    def _worth_a_search(cls, objectives: tuple[ObjectiveConfig, ...]) -> tuple[ObjectiveConfig, ...]:
        if any(objective.name == "mean" for objective in objectives):
            raise ValueError("'mean' names the mean of all objectives; give this objective another name")
        if all(objective.cost is not None for objective in objectives):
            raise ValueError(
                "expected an objective that a task measures; got costs alone, which no search is needed for"
            )
        return objectives

    @model_validator(mode="after")
    def _one_design(self) -> Self:
        if isinstance(self.estimator, IrtConfig) and self.items.draw == "fixed":
            raise ValueError(
                "items.draw: fixed contradicts estimator.kind: irt, which chooses items for each candidate"
            )
        if self.race is not None and self.items.search < 2 * self.race.rounds:
            raise ValueError(
                f"race.rounds: expected at least 2 items in each of {self.race.rounds} portions; "
                f"got items.search: {self.items.search}; raise it, or lower race.rounds"
            )
        return self

    @model_validator(mode="after")
    def _scorers_are_read_right(self) -> Self:
        for read in self.metrics:
            scorer = self.scorers.get(read.task)
            if scorer is None:
                continue
            where = f"{read.name}: the scorer {read.task!r}"
            if read.metric not in scorer.metrics:
                hint = near(read.metric, scorer.metrics)
                raise ValueError(f"{where} measures {list(scorer.metrics)}; got metric: {read.metric!r}{hint}")
            if isinstance(scorer, TextConfig) and read.goal == "max":
                raise ValueError(f"{where}: {read.metric} is better the lower it is; set goal: min, or at_most")
            if read.filter is not None or read.few_shot:
                raise ValueError(f"{where} is no lm-eval task; leave out filter and few_shot")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [measured.name for measured in self.measured]
        if len(set(names)) != len(names):
            raise ValueError(f"names of objectives and constraints must be distinct; got {names}")
        return self

    @property
    def measured(self) -> tuple[Measured, ...]:
        """All that is known of a candidate: the objectives, then the constraints."""
        return (*self.objectives, *self.constraints)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All that items are asked for, in the same order."""
        return tuple(metric for measured in self.measured for metric in measured.metrics)
