"""The course of a run, as plain frozen data: what was spent and reached, tried and lost, and who worked when.

Knows nothing of run folders, files or pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Cost", "Curve", "Failure", "Generation", "History", "Try", "Utilization"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Hypervolume of the estimated front as a search went on.

    Attributes:
        hypervolume: after each evaluation, in order of completion, anchors included.
        spent: running totals at the same moments, by what is counted: `evaluations`, `items`,
            `worker hours`, and `tokens` where workers told.
    """

    hypervolume: tuple[float, ...]
    spent: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What the search reached.

    Attributes:
        reference: where hypervolumes are measured from, one value per objective in its own unit.
        curve: this run's.
        random: that of a random search over the same space; None if nobody made one.
    """

    reference: tuple[float, ...]
    curve: Curve
    random: Curve | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What the algorithm did with one generation.

    Attributes:
        candidates, failed: how many it proposed, and how many of them got no score.
        best, median: of the estimated mean of the objectives, higher is better; None if all failed.
        front: how many of the estimated front it brought.
        spread: standard deviation of a gene over the generation, the mean over all genes; genes go from 0 to 1.
        state: what the algorithm tells of itself after it, see `Algorithm.state`; empty if it tells nothing.
    """

    number: int
    candidates: int
    failed: int
    best: float | None
    median: float | None
    front: int
    spread: float
    state: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Utilization:
    """Who worked when.

    Attributes:
        start: unix seconds of the first attempt.
        step: seconds that each share speaks of.
        workers: for each worker the share of each step that it was busy, 0 to 1.
    """

    start: float
    step: float
    workers: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Try:
    """An attempt that brought no score.

    Attributes:
        status: `failed`, or `lost` with its driver.
        seconds: how long it took; None if nobody saw its end.
    """

    candidate: int
    phase: str
    number: int
    worker: str
    status: str
    stage: str
    reason: str
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A candidate that got no score, for good."""

    candidate: int
    phase: str
    stage: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What the run took.

    Attributes:
        seconds: worker seconds by stage.
        rewritten: mean share of the live model's weights that a candidate had to write; None if no worker told.
        wall_seconds: how long the drivers of this run were up; 0 until the first one ended.
        evaluations: search results, against `budget`; copies of an equal recipe's result count.
        copied: results that were taken over from an equal recipe.
        confirmations, items: results on unseen items; item responses that were computed, copies left out.
        tokens: read and written for them; those of a user's own functions are not known.
        attempts: number of attempts by status.
        unspent: what became of the rest of the budget, in words; empty if all of it was spent.
        audit: what randomly drawn items said of the item banks, in words; empty without banks.
    """

    seconds: Mapping[str, float]
    rewritten: float | None
    wall_seconds: float
    evaluations: int
    budget: int
    copied: int
    confirmations: int
    items: int
    attempts: Mapping[str, int]
    unspent: str = ""
    audit: str = ""
    tokens: int = 0
