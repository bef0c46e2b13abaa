"""What a user may write about what is measured: objectives, constraints, and the tasks or costs behind them.

Knows nothing of items, files or scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast

from pydantic import Field, model_validator

from evomerge.config.base import Finite, Name, Strict
from evomerge.recipe import Cost

__all__ = ["ConstraintConfig", "Measured", "Metric", "ObjectiveConfig", "PartConfig"]


class PartConfig(Strict):
    """A metric of a task, averaged over its items, as part of an objective or constraint."""

    task: str
    """An lm-eval task, from the files under `tasks`; or a scorer."""
    metric: str = "acc"
    """Per-item metric of that task."""
    filter: str | None = None
    """lm-eval filter; needed only when the task has several."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    """Worked examples in the prompt."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share in the mean over all parts; how many items a task has does not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A metric of a task, as an objective or constraint reads it.

    Attributes:
        name: of the objective or constraint; of one with several tasks, the task and metric behind it.
        task, metric, filter, few_shot: see `PartConfig`.
        goal: which way is better.
        share: in the mean over the objective's or constraint's metrics; they sum to 1.
    """

    name: str
    task: str
    metric: str
    filter: str | None
    few_shot: int
    goal: Literal["max", "min"]
    share: float


class _NamedConfig(Strict):
    """Something to know of a candidate: one `task`, a weighted mean over several `tasks`, or a `cost`."""

    name: Name
    task: str | None = None
    """An lm-eval task, from the files under `tasks`; or a scorer."""
    metric: str = "acc"
    """Per-item metric of that task."""
    filter: str | None = None
    """lm-eval filter; needed only when the task has several."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    """Worked examples in the prompt."""
    tasks: tuple[PartConfig, ...] = ()
    """In place of `task`: several, each with its metric and weight. Their means are averaged."""
    cost: Cost | None = None
    """In place of `task`: what running the merged model takes, known from the recipe without asking any item."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [key for key in ("task", "tasks", "cost") if getattr(self, key)]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"{self.name}: expected one of task, tasks and cost; got {got}")
        if self.task is None and (self.metric, self.filter, self.few_shot) != ("acc", None, 0):
            where = "write them under each of tasks" if self.tasks else "a cost has none"
            raise ValueError(f"{self.name}: metric, filter and few_shot belong to a task; {where}")
        read = [(part.task, part.metric) for part in self.tasks]
        if twice := sorted({pair for pair in read if read.count(pair) > 1}):
            raise ValueError(f"{self.name}: expected each task and metric once; got {twice[0]} twice; use its weight")
        return self

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What it is the weighted mean of; empty for a cost."""
        one = () if self.task is None else (_part(self),)
        parts = self.tasks or one
        total = math.fsum(part.weight for part in parts)
        return tuple(
            Metric(
                name=self.name if self.task is not None else f"{self.name}: {part.task} ({part.metric})",
                goal=cast("Measured", self).goal,
                share=part.weight / total,
                **part.model_dump(exclude={"weight"}),
            )
            for part in parts
        )


def _part(one: _NamedConfig) -> PartConfig:
    return PartConfig(task=one.task or "", metric=one.metric, filter=one.filter, few_shot=one.few_shot)


class ObjectiveConfig(_NamedConfig):
    """One number to optimize."""

    goal: Literal["max", "min"] = "max"
    """`max`: higher values of the metric are better."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Share in the weighted mean that single-objective algorithms optimize and that the verdict speaks of. For a cost,
    of its unit, and 0 if left out."""

    @model_validator(mode="after")
    def _counts_for_something(self) -> Self:
        if self.cost is not None and "weight" not in self.model_fields_set:
            object.__setattr__(self, "weight", 0.0)
        if self.cost is not None and self.goal == "max":
            raise ValueError(f"{self.name}: {self.cost} is better the lower it is; set goal: min")
        if self.cost is None and self.weight == 0:
            raise ValueError(f"{self.name}: expected a weight above 0; got 0; make it a constraint, or leave it out")
        return self


class ConstraintConfig(_NamedConfig):
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
