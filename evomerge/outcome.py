"""What travels between driver and worker: a `Job` out, an `Outcome` back. Frozen records, never exceptions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from evomerge.recipe import Cost, Recipe

__all__ = [
    "Answer",
    "Exact",
    "Failed",
    "ItemSet",
    "Job",
    "Outcome",
    "Phase",
    "Responses",
    "Scored",
    "Stage",
    "together",
]

Phase = Literal["search", "confirm"]
"""`search`: items that steer the search. `confirm`: items that it never sees."""

Stage = Literal["materialize", "screen", "evaluate", "timeout", "worker", "node"]
"""Where a job failed: making the weights, a first look at the model, scoring it, running out of time, losing the
process, or losing its node."""


@dataclass(frozen=True, slots=True)
class ItemSet:
    """Which items of which tasks.

    Attributes:
        tasks: pairs of task name and its item ids, sorted and distinct; no task is empty.

    Raises:
        ValueError: an empty task, repeated or unsorted ids, a repeated task.
    """

    tasks: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.tasks]
        if names != sorted(set(names)):
            raise ValueError(f"tasks must be distinct and sorted; got {names}")
        for name, ids in self.tasks:
            if not ids or ids[0] < 0 or any(a >= b for a, b in pairwise(ids)):
                raise ValueError(f"task {name!r}: item ids must be distinct, sorted, >= 0 and at least one; got {ids}")

    @classmethod
    def of(cls, tasks: Mapping[str, tuple[int, ...]]) -> ItemSet:
        """From a mapping; sorts tasks and ids."""
        return cls(tuple((name, tuple(sorted(tasks[name]))) for name in sorted(tasks)))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits; equal digests mean equal items."""
        return hashlib.blake2b(repr(self.tasks).encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return sum(len(ids) for _, ids in self.tasks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One candidate to make and score.

    Attributes:
        candidate: run-wide number of the candidate.
        round: which portion of a candidate's items this is, from 0; its responses add up over the rounds of a phase.
        attempt: 1 for the first try of this (candidate, phase); counts on over rounds.
        alone: to be done in a process of its own, because drivers that did it themselves did not live to tell.
        screened: to be looked at before it is scored, if the fitness has a `screen`.
    """

    candidate: int
    phase: Phase
    recipe: Recipe
    items: ItemSet
    round: int = 0
    attempt: int = 1
    alone: bool = False
    screened: bool = False

    @property
    def work(self) -> int:
        """What it takes, as far as that is known beforehand: items times layers to run."""
        return len(self.items) * self.recipe.depth


@dataclass(frozen=True, kw_only=True, slots=True)
class Responses:
    """Per-item outcomes of one candidate on one task.

    Attributes:
        metric: lm-eval metric name, for example `acc`.
        items: item ids, sorted.
        values: one raw metric value per item, finite, in the metric's own direction.

    Raises:
        ValueError: lengths differ.
    """

    task: str
    metric: str
    items: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.items) != len(self.values):
            raise ValueError(f"{self.task}/{self.metric}: {len(self.items)} items but {len(self.values)} values")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exact:
    """A cost of a candidate, known from its recipe; see `evomerge.recipe.Cost`."""

    cost: Cost
    value: int


Answer = Responses | Exact
"""What is known of a candidate, piece by piece."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A job that was done.

    Attributes:
        responses: one record per (task, metric), sorted.
        seconds: wall seconds by stage: `materialize`, `screen` (if candidates are screened), `forward` (the model's
            forward pass), `evaluate` (scoring without the forward pass).
        tokens: read and written, by task: prompts, each text of an item once, answers that were scored and texts that
            were written. Without the tasks whose scorers are a user's functions, of which nobody knows.
        rewritten: share of the live model's weights that had to be written, 0 to 1; None for a worker that has none.
        worker: who did it.
    """

    candidate: int
    phase: Phase
    round: int = 0
    responses: tuple[Responses, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    rewritten: float | None = None
    worker: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A job that was not done.

    Attributes:
        reason: one line for people.
        retry: the candidate is not to blame (a lost process, a preempted node), so it may be tried again.
    """

    candidate: int
    phase: Phase
    round: int = 0
    stage: Stage
    reason: str
    retry: bool = False
    worker: str = ""


Outcome = Scored | Failed


def together(rounds: Iterable[tuple[Responses, ...]]) -> tuple[Responses, ...]:
    """What one candidate answered in several rounds, as if it had been asked at once: sorted by task and metric.

    An item that was asked twice counts as it was answered last.
    """
    found: dict[tuple[str, str], dict[int, float]] = {}
    for responses in rounds:
        for response in responses:
            answers = found.setdefault((response.task, response.metric), {})
            answers.update(zip(response.items, response.values, strict=True))
    return tuple(
        Responses(
            task=task, metric=metric, items=tuple(sorted(answers)), values=tuple(answers[i] for i in sorted(answers))
        )
        for (task, metric), answers in sorted(found.items())
    )
