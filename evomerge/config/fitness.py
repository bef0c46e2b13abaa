"""What a user may write about a fitness: what is measured, on how many items, and how sure the verdict must be.

Knows nothing of files, benchmarks or scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from evomerge.config.base import Finite, Name, Strict

__all__ = [
    "ConfirmConfig",
    "ConstraintConfig",
    "FitnessConfig",
    "ItemsConfig",
    "Measured",
    "MetricConfig",
    "ObjectiveConfig",
]


class MetricConfig(Strict):
    """A metric of an lm-eval task, averaged over items."""

    name: Name
    task: str
    """lm-eval task name, from the files under `tasks`."""
    metric: str = "acc"
    """Per-item metric of that task."""
    filter: str | None = None
    """lm-eval filter; needed only when the task has several."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    """Worked examples in the prompt."""


class ObjectiveConfig(MetricConfig):
    """One number to optimize."""

    goal: Literal["max", "min"] = "max"
    """`max`: higher values of the metric are better."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share in the weighted mean that single-objective algorithms optimize."""


class ConstraintConfig(MetricConfig):
    """A limit. A candidate that breaks one is worse than any that keeps all, however well it scores."""

    at_least: Finite | None = None
    """Smallest mean of the metric; either this or `at_most`."""
    at_most: Finite | None = None
    """Largest mean."""
    relative_to: str | None = None
    """`base`, an expert or `uniform`: the limit is then on the difference to it, on the same items. `at_least: -0.02,
    relative_to: base` allows to forget two points."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.name}: expected one limit, at_least or at_most; got both or none")
        return self

    @property
    def goal(self) -> Literal["max", "min"]:
        """On which side of the limit a candidate must be."""
        return "min" if self.at_least is None else "max"

    @property
    def weight(self) -> float:
        """Constraints are not weighed against each other."""
        return 1.0

    @property
    def limit(self) -> float:
        """Smallest score, higher being better."""
        return self.at_least if self.at_least is not None else -(self.at_most or 0.0)


Measured = ObjectiveConfig | ConstraintConfig


class ItemsConfig(Strict):
    """How many items score a candidate, and how many are kept back."""

    search: Annotated[int, Field(ge=2)]
    """Items per task and candidate during the search."""
    confirm: Annotated[int, Field(ge=2)]
    """Items per task that only the final confirmation uses; never seen by the search."""
    draw: Literal["fresh", "fixed"] = "fresh"
    """`fresh`: a new draw each generation, shared inside it; `fixed`: one draw for the whole run."""


class ConfirmConfig(Strict):
    """What is re-scored at the end, and how sure the verdict must be."""

    shortlist: Annotated[int, Field(ge=1)] = 12
    """Most candidates of the final front that are confirmed, beside the anchors."""
    level: Annotated[Finite, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence level of the intervals."""


class FitnessConfig(Strict):
    """What makes a merged model good."""

    tasks: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Files or folders with lm-eval task YAMLs."""
    objectives: Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1)]
    constraints: tuple[ConstraintConfig, ...] = ()
    """Limits that every candidate must keep."""
    items: ItemsConfig
    confirm: ConfirmConfig = ConfirmConfig()
    chat_template: bool = False
    """Wrap prompts in the models' chat template."""

    @field_validator("objectives")
    @classmethod
    def _not_mean(cls, objectives: tuple[ObjectiveConfig, ...]) -> tuple[ObjectiveConfig, ...]:
        if any(objective.name == "mean" for objective in objectives):
            raise ValueError("'mean' names the mean of all objectives; give this objective another name")
        return objectives

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise ValueError(f"names of objectives and constraints must be distinct; got {names}")
        return self

    @property
    def metrics(self) -> tuple[ObjectiveConfig | ConstraintConfig, ...]:
        """All that is measured: the objectives, then the constraints."""
        return (*self.objectives, *self.constraints)
