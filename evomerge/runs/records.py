"""The records of a run, and how each becomes a database row. Knows nothing of files, transactions or models."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.errors import StoreError
from evomerge.outcome import Failed, Job, Outcome, Phase, Responses, Stage
from evomerge.recipe import Recipe

__all__ = ["Attempt", "Candidate", "Failure", "Kind", "Result", "Status", "check", "pack", "unpack"]

Kind = Literal["anchor", "search", "answer"]
"""`anchor`: base, parents and uniform average; `search`: proposed by the algorithm; `answer`: made for confirmation."""

Status = Literal["started", "scored", "failed", "lost"]
"""`lost`: the driver ended before the attempt did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One recipe of a run.

    Attributes:
        id: run-wide number.
        label: `base`, an expert's name or `uniform`; empty for everything that is no anchor.
        generation: -1 for anchors.
        slot: place within the generation.
        genome: what the algorithm proposed, in the unit box; None for anchors.
        recipe: what it stands for. One that comes from a database is read when it is first asked for: a long run has
            more recipes than anybody looks at.
        stored: the text that `recipe` is read from.
    """

    id: int
    kind: Kind
    label: str = ""
    generation: int
    slot: int
    genome: tuple[float, ...] | None
    recipe: Recipe
    stored: str = field(default="", compare=False, repr=False)

    def __getattr__(self, name: str) -> Recipe:
        """Reads the recipe: called for attributes that are not there, as `recipe` is at first."""
        if name != "recipe":
            raise AttributeError(name)
        recipe = Recipe.from_data(json.loads(self.stored))
        object.__setattr__(self, "recipe", recipe)
        return recipe

    def to_row(self) -> tuple[object, ...]:
        """Values in the order of the table `candidate`."""
        genome = None if self.genome is None else pack(self.genome, "d")
        recipe = self.recipe
        return (self.id, self.kind, self.label, self.generation, self.slot, genome, recipe.digest, recipe.canonical())

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Candidate:
        """The inverse of `to_row`."""
        candidate = object.__new__(cls)
        values = {name: row[name] for name in ("id", "kind", "label", "generation", "slot")}
        genome = None if row["genome"] is None else unpack(row["genome"], "d")
        for name, value in (values | {"genome": genome, "stored": row["recipe"]}).items():
            object.__setattr__(candidate, name, value)
        return candidate


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one candidate scored in one round of one phase.

    Attributes:
        round: from 0, see `evomerge.outcome.Job`.
        seq: order of completion in the run, from 0, without gaps.
        items_digest: `ItemSet.digest` of the items that were answered.
        seconds, rewritten: see `evomerge.outcome.Scored`; a copy has none.
        tokens: likewise; a copy has as many as it would have taken.
        cached_from: the candidate with an equal recipe that was really scored; None if this one was.
    """

    candidate: int
    phase: Phase
    round: int = 0
    seq: int
    responses: tuple[Responses, ...]
    items_digest: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)
    rewritten: float | None = None
    worker: str = ""
    cached_from: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One try at a (candidate, phase), whatever became of it.

    Attributes:
        number: from 1.
        stage, reason: why it failed; empty otherwise.
        started_at, ended_at: unix seconds; `ended_at` is None while it runs.
    """

    candidate: int
    phase: Phase
    number: int
    worker: str
    status: Status
    stage: Stage | Literal[""]
    reason: str
    started_at: float
    ended_at: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A (candidate, phase) that is given up and will not be tried again."""

    candidate: int
    phase: Phase
    stage: Stage
    reason: str


def pack(numbers: tuple[float, ...] | tuple[int, ...], code: Literal["d", "q"]) -> bytes:
    """Little-endian bytes: `d` for 64-bit floats, `q` for 64-bit integers."""
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


def unpack(blob: bytes, code: Literal["d", "q"]) -> tuple[Any, ...]:
    """The inverse of `pack`."""
    return struct.unpack(f"<{len(blob) // 8}{code}", blob)


def check(outcome: Outcome, job: Job) -> None:
    """That an outcome answers its job: every item asked for, no other, every value a finite number.

    Raises:
        ValueError: the outcome of another job.
        StoreError: a worker broke its contract; what it sent must not be recorded.
    """
    asked_for, came = ((record.candidate, record.phase, record.round) for record in (job, outcome))
    if asked_for != came:
        raise ValueError(f"expected the outcome of candidate, phase and round {asked_for}; got that of {came}")
    if isinstance(outcome, Failed):
        return
    where = f"candidate {job.candidate}, {job.phase}, worker {outcome.worker or 'unknown'}"
    asked = dict(job.items.tasks)
    got = {response.task: response.items for response in outcome.responses}
    if got != asked or any(response.items != asked[response.task] for response in outcome.responses):
        expected, received = ({task: len(ids) for task, ids in items.items()} for items in (asked, got))
        raise StoreError(f"{where}: expected the items {expected}; got {received}, or others; repair the worker")
    for response in outcome.responses:
        if not all(map(math.isfinite, response.values)):
            raise StoreError(f"{where}: {response.task}/{response.metric} must be finite; repair the worker")
