"""Where a run stands, read bit by bit: every look at the run folder reads what is new, and never all of it again.

Serves the live screen, `status` and trackers alike. Knows nothing of terminals.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.errors import TaskError
from evomerge.fitness import Told, broken, with_costs
from evomerge.outcome import together
from evomerge.pareto import nondominated
from evomerge.reports.chronicle import items_of
from evomerge.reports.course import Failure
from evomerge.reports.measures import believed_scores, measured_scores
from evomerge.reports.summarize import objective_of, state_of
from evomerge.reports.words import audit_words, one_line, unspent

if TYPE_CHECKING:
    from evomerge.config import Experiment
    from evomerge.outcome import Answer, Responses
    from evomerge.reports.summary import Objective, Scores
    from evomerge.runs import Result, RunStore

__all__ = ["MANY", "Labour", "Standing", "Tally"]

MANY = 8_000
"""New results from which on a look counts them, and leaves their scores to the report."""

_RECENT = 256
"""Results that the pace is taken from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labour:
    """What one worker did.

    Attributes:
        seconds: that its jobs took.
    """

    jobs: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A run at one moment, by estimates from the items of the search.

    Attributes:
        state: `running`, `stopped` or `finished`.
        generations: begun so far.
        done, planned: candidates with a search result, and what the budget allows.
        confirmed: candidates with a result on unseen items.
        failed: candidates given up; `failures` tells of the latest.
        pace: candidates per hour of the recent past; None before there is one.
        scores: by candidate, those that were scored; empty where there are too many to be read in passing.
        fresh: those of them that are new since the last look, with the number of their latest result.
        names: what people call the candidates of `scores`; anchors by their labels.
        anchors: candidates that are not merged by the search.
        front: estimated, best mean first, anchors included.
        workers: by name.
        attempts: number of attempts by status.
        rewritten: mean share of the live model's weights that a candidate had to write; None if no worker told.
        unspent: what became of the rest of the budget, in words.
        audit: what randomly drawn items said of the item banks, in words.
    """

    name: str
    folder: str
    state: str
    objectives: tuple[Objective, ...]
    generations: int
    done: int
    planned: int
    confirmed: int
    copied: int
    failed: int
    failures: tuple[Failure, ...]
    pace: float | None
    scores: Mapping[int, Scores]
    fresh: Mapping[int, int]
    names: Mapping[int, str]
    anchors: frozenset[int]
    front: tuple[int, ...]
    workers: Mapping[str, Labour]
    attempts: Mapping[str, int]
    items: int
    tokens: int
    wall_seconds: float
    rewritten: float | None
    unspent: str
    audit: str

    @property
    def best(self) -> int | None:
        """The merged candidate with the best mean of the objectives among those that keep the constraints."""
        return next((candidate for candidate in self.front if candidate not in self.anchors), None)


class Tally:
    """What was read of a run so far.

    Args:
        experiment: the run's own.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._objectives = tuple(objective_of(objective) for objective in experiment.fitness.objectives)
        self._seq = -1
        self._rounds: dict[int, list[tuple[Responses, ...]]] = defaultdict(list)
        self._references: dict[str, tuple[Answer, ...]] = {}
        self._unscored: dict[int, int] = {}
        self._scores: dict[int, Scores] = {}
        self._broken: set[int] = set()
        self._labels: dict[int, str] = {}
        self._jobs: Counter[str] = Counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._items = self._tokens = 0
        self._rewritten, self._told = 0.0, 0

    def look(self, store: RunStore) -> Standing:
        """Where the run stands now.

        Args:
            store: the run, read anew.

        Raises:
            StoreError: it cannot be read.
            TaskError: results that do not belong to the objectives.
        """
        counts = store.counts()
        self._labels = self._labels or store.labels()
        fresh = self._take(store) if counts["results"] - self._seq - 1 < MANY else {}
        failures = store.failures()
        self._drop(failure.candidate for failure in failures if failure.phase == "search")
        spent = json.loads(store.meta("driver") or "{}")
        return Standing(
            name=one_line(self._experiment.name),
            folder=one_line(str(store.folder)),
            state=state_of(store),
            objectives=self._objectives,
            generations=counts["generations"],
            done=counts["searched"],
            planned=self._experiment.budget.evaluations,
            confirmed=counts["confirmed"],
            copied=counts["copied"],
            failed=counts["failures"],
            failures=tuple(
                Failure(candidate=f.candidate, phase=f.phase, stage=f.stage, reason=one_line(f.reason))
                for f in failures[-3:]
            ),
            pace=_pace(store.spans(_RECENT)),
            scores=self._scores.copy(),
            fresh=fresh,
            names={candidate: one_line(self._labels.get(candidate, f"#{candidate}")) for candidate in self._scores},
            anchors=frozenset(self._labels),
            front=self._front(),
            workers={name: Labour(jobs=n, seconds=self._seconds[name]) for name, n in sorted(self._jobs.items())},
            attempts={name.split()[1]: count for name, count in counts.items() if name.startswith("attempt ")},
            items=self._items,
            tokens=self._tokens,
            wall_seconds=spent.get("wall_seconds", 0.0),
            rewritten=self._rewritten / self._told if self._told else None,
            unspent=unspent(
                self._experiment,
                counts["asked"],
                sum(failure.phase == "search" for failure in failures),
                finished=store.meta("state") == "finished",
            ),
            audit=audit_words(store.notes("audit")),
        )

    def _take(self, store: RunStore) -> dict[int, int]:
        """Read what is new; whose scores are, each with the number of the latest result."""
        estimated = self._experiment.fitness.estimator.kind != "mean"
        changed: dict[int, tuple[Responses, ...]] = {}
        for result in store.results_after(self._seq):
            self._seq = result.seq
            self._count(result)
            if result.phase == "search":
                self._unscored[result.candidate] = result.seq
                if not estimated:
                    changed[result.candidate] = self._responses(result)
        if estimated:  # a model of items reads the answers, when a generation is told
            self._believe(store.estimates())
        else:
            self._measure(store, changed)
        return {
            candidate: self._unscored.pop(candidate) for candidate in [*self._unscored] if candidate in self._scores
        }

    def _count(self, result: Result) -> None:
        if result.cached_from is not None:
            return
        self._items += items_of(result.responses)
        self._tokens += sum(result.tokens.values())
        name = one_line(result.worker)
        self._jobs[name] += 1
        self._seconds[name] += sum(result.seconds.values())
        if result.rewritten is not None:
            self._rewritten += result.rewritten
            self._told += 1

    def _responses(self, result: Result) -> tuple[Responses, ...]:
        """All that its candidate answered so far; without a race that is one round."""
        if self._experiment.fitness.race is None:
            return result.responses
        self._rounds[result.candidate].append(result.responses)
        return together(self._rounds[result.candidate])

    def _measure(self, store: RunStore, changed: Mapping[int, tuple[Responses, ...]]) -> None:
        """Scores of candidates, and whether they keep the constraints."""
        measured = self._experiment.fitness.measured
        costly = any(each.cost is not None for each in measured)  # recipes are long, and nobody else asks for them
        answers: dict[int, tuple[Answer, ...]] = {
            number: with_costs(responses, store.candidate(number).recipe, store.sizes, measured)
            if costly
            else responses
            for number, responses in changed.items()
        }
        self._references |= {self._labels[number]: each for number, each in answers.items() if number in self._labels}
        for number, each in answers.items():
            self._scores[number] = measured_scores(each, self._experiment)
            self._broken.discard(number)
            with suppress(TaskError):  # an anchor to compare with is missing: then nothing can be said
                if [*broken(each, self._references, self._experiment.fitness.constraints)]:
                    self._broken.add(number)

    def _believe(self, estimates: Mapping[int, Mapping[str, Any]]) -> None:
        self._scores = {number: believed_scores(Told(**told), self._experiment) for number, told in estimates.items()}
        self._broken = {number for number, told in estimates.items() if told["violation"]}

    def _drop(self, candidates: Iterable[int]) -> None:
        for candidate in candidates:
            self._scores.pop(candidate, None)

    def _front(self) -> tuple[int, ...]:
        eligible = [candidate for candidate in self._scores if candidate not in self._broken] or [*self._scores]
        costs = [
            [o.cost(m.mean) for o, m in zip(self._objectives, self._scores[candidate].each, strict=True)]
            for candidate in eligible
        ]
        front = [eligible[index] for index in nondominated(costs)]
        return tuple(sorted(front, key=lambda candidate: -self._scores[candidate].mean.mean))


def _pace(spans: Sequence[tuple[int, float, float]]) -> float | None:
    """Candidates per hour, over the time in which any was being scored: nights between two drivers do not count."""
    busy, until = 0.0, 0.0
    for _, start, end in sorted(spans, key=lambda span: span[1:]):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 3600 * len({candidate for candidate, _, _ in spans}) / busy if busy else None
