"""`Summary`: what a run amounts to, as plain frozen data.

Every report is a pure function of a summary. Knows nothing of run folders, files, HTML or terminals.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.errors import StoreError
from evomerge.recipe import Recipe
from evomerge.reports.course import Cost, Failure, Generation, History, Try, Utilization

__all__ = [
    "Confirmation",
    "Entry",
    "Exchange",
    "Gain",
    "Measure",
    "Objective",
    "Scores",
    "Summary",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """One axis of the front: metrics of tasks, or a cost, which has no task; `goal` says which way is better."""

    name: str
    task: str
    metric: str
    goal: Literal["max", "min"]
    weight: float

    def cost(self, value: float) -> float:
        """The value, turned so that lower is better."""
        return -value if self.goal == "max" else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A measured number with its interval.

    Attributes:
        mean: in the metric's own unit and direction; for the mean of the objectives higher is better.
        low, high: the interval at the run's confidence level.
        items: how many items it rests on; 0 for a cost, which is exact.
    """

    mean: float
    low: float
    high: float
    items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What a candidate scored on one set of items.

    Attributes:
        mean: the weighted mean of the objectives, minimized ones negated.
        each: one measure per objective.
    """

    mean: Measure
    each: tuple[Measure, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One candidate and what is known of it.

    Attributes:
        name: what people call it: the anchor's label, or `#` and the number.
        kind: `anchor`, `search`, or `answer` (proposed by the algorithm at the end).
        generation: -1 for anchors.
        estimated: on items that steered the search; None when it was not scored on them.
        confirmed: on items that the search never saw.
        broken: the constraints that it breaks, in words; by its confirmation if there was one.
        parents: the candidates that it was crossed from; empty where nobody recorded any.
    """

    id: int
    name: str
    kind: Literal["anchor", "search", "answer"]
    generation: int
    recipe: Recipe = field(repr=False)
    description: str
    estimated: Scores | None = None
    confirmed: Scores | None = None
    broken: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A candidate against an anchor on the same unseen items; positive is better, whatever the goal.

    Attributes:
        of: an objective's name, or `MEAN`.
        measure: the difference; the intervals of all gains hold together.
    """

    candidate: int
    anchor: int
    of: str
    measure: Measure


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Items that a candidate answers better, and worse, than a parent: both were asked them in the confirmation.

    Attributes:
        gained, lost: item numbers of the task.
        items: how many both were asked.
    """

    candidate: int
    anchor: int
    task: str
    metric: str
    gained: tuple[int, ...]
    lost: tuple[int, ...]
    items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """The front after re-scoring on unseen items.

    Attributes:
        front: ids of the candidates that no other confirmed one dominates.
        probability: by id, how probably a confirmed candidate would be on the front on other items of the kind.
        knee: the balanced member of the front.
        best: for each objective, the best member.
        gains: every finalist against every anchor.
        exchanges: every finalist against every parent, by task and metric.
    """

    front: tuple[int, ...]
    probability: Mapping[int, float]
    knee: int
    best: Mapping[str, int]
    gains: tuple[Gain, ...] = field(repr=False)
    exchanges: tuple[Exchange, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A run, finished or not. Its `repr` leaves out what grows with the run.

    Attributes:
        state: `running`, `stopped` or `finished`.
        level: confidence of the intervals.
        entries: all candidates by id.
        front, knee, best: by search estimates alone; the knee is None when nothing was scored. See `confirmation`.
        confirmation: None until the run ended with its finalists re-scored on unseen items.
        generations: what the algorithm did, by generation.
        tries: attempts that brought no score.
        utilization: None before the first attempt ended.
        warnings: why the result may be worth less than it looks.
    """

    name: str
    folder: str
    state: str
    created_at: str
    seed: int
    level: float
    objectives: tuple[Objective, ...]
    entries: Mapping[int, Entry] = field(repr=False)
    front: tuple[int, ...]
    knee: int | None
    best: Mapping[str, int]
    confirmation: Confirmation | None
    history: History | None = field(repr=False)
    generations: tuple[Generation, ...] = field(repr=False)
    tries: tuple[Try, ...] = field(repr=False)
    utilization: Utilization | None = field(repr=False)
    failures: tuple[Failure, ...] = field(repr=False)
    cost: Cost
    versions: Mapping[str, str]
    experiment: Mapping[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def anchors(self) -> tuple[Entry, ...]:
        """The base, every expert and the uniform average."""
        return tuple(entry for entry in self.entries.values() if entry.kind == "anchor")

    @property
    def parents(self) -> tuple[Entry, ...]:
        """The anchors that are models of the pool."""
        return tuple(entry for entry in self.anchors if len(entry.recipe.models) == 1)

    @property
    def picks(self) -> dict[str, int]:
        """Candidates that have a name of their own: `knee` and `best:OBJECTIVE`; confirmed where the run is."""
        source = self.confirmation or self
        knee = {} if source.knee is None else {"knee": source.knee}
        return knee | {f"best:{name}": candidate for name, candidate in source.best.items()}

    @property
    def finalists(self) -> tuple[Entry, ...]:
        """What the run proposes: merged candidates that were confirmed, or the estimated front before that."""
        merged = [entry for entry in self.entries.values() if entry.kind != "anchor"]
        if self.confirmation is not None:
            return tuple(entry for entry in merged if entry.confirmed is not None)
        return tuple(entry for entry in merged if entry.id in self.front)

    def pick(self, choice: str) -> int:
        """The candidate that a user means by `knee`, `best:OBJECTIVE`, an anchor's name or a number.

        Raises:
            StoreError: no such candidate.
        """
        number = choice.removeprefix("#")
        if choice in self.picks:
            return self.picks[choice]
        if number.isascii() and number.isdigit() and int(number) in self.entries:
            return int(number)
        anchors = {entry.name: entry.id for entry in self.anchors}
        if choice in anchors:
            return anchors[choice]
        if not self.entries:
            raise StoreError(f"{self.folder}: there is no candidate yet; to go on: {self.commands()['resume']}")
        known = ", ".join([*self.picks, *anchors, f"or a number up to {max(self.entries)}"])
        raise StoreError(f"{self.folder}: expected a candidate, one of {known}; got {choice!r}")

    def commands(self) -> dict[str, str]:
        """Command lines for what comes next, ready to copy."""
        folder = shlex.quote(self.folder)
        lines = {
            "resume": f"evomerge run {folder}",
            "report": f"evomerge report {folder}",
            "replay": f"evomerge replay {folder}",
        }
        return lines | {"export": self.export_command(self.picks["knee"])} if self.picks else lines

    def export_command(self, candidate: int) -> str:
        """The command line that writes a candidate as a model; by its name (`knee`, ...) if it has one."""
        choice = next((name for name, pick in self.picks.items() if pick == candidate), str(candidate))
        return f"evomerge export {shlex.quote(self.folder)} --candidate {shlex.quote(choice)}"
