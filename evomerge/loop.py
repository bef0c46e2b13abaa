"""What every loop of a search does alike, whether it works by generations or not.

A loop always starts at the beginning: whatever the run folder already holds is taken from there instead of being
evaluated again. So the optimizer's state is rebuilt by the same asks and tells that made it.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from evomerge.config import Experiment
from evomerge.evaluator import Evaluator
from evomerge.fitness import Assessment, with_costs
from evomerge.fitness.item_scores import item_scores
from evomerge.opening import Lineup
from evomerge.outcome import Answer, Phase
from evomerge.population import Item, PopulationManager
from evomerge.register import Register
from evomerge.runs import Candidate, RunStore
from evomerge.stopping import Stop

__all__ = ["Loop", "Progress"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A step of a run, for whoever watches.

    Attributes:
        phase: what is being scored.
        generation: counted from 0; -1 in the confirmation. Without generations, so many candidates make one.
        done, planned: candidates settled and to be settled in this phase.
        failures: candidates that failed for good.
        in_flight: candidates in work, in a search without generations; None otherwise.
    """

    phase: Phase
    generation: int
    done: int
    planned: int
    failures: int
    in_flight: int | None = None


@dataclass(kw_only=True, eq=False)
class Loop(ABC):
    """Asks, scores and tells until the budget is spent.

    Attributes:
        live: whether anything may be evaluated and written; else the record is walked through.
        spent: items that the search asked.
        tokens: that those took, as far as they were told.
        dearest: most tokens that a step took.
    """

    experiment: Experiment
    lineup: Lineup
    store: RunStore
    evaluator: Evaluator
    assessment: Assessment
    manager: PopulationManager
    register: Register
    live: bool
    spent: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    dearest: int = field(default=0, init=False)
    _since: float = field(default_factory=time.perf_counter, init=False)

    @abstractmethod
    def run(self, stop: Stop) -> Iterator[Progress]:
        """Search until the budget is spent.

        Yields:
            One record after each candidate that was not settled before.

        Raises:
            Drained: a stop was asked for, and nothing is in flight any more.
            Unsettled: the record ends, and the loop is not live.
            RunError: nothing can be evaluated.
        """

    @property
    @abstractmethod
    def generations(self) -> int:
        """How many whole generations were told; without them, as many candidates as make one."""

    def begin(self) -> None:
        """The wall time that counts begins now."""
        self._since = time.perf_counter()

    def account(self) -> None:
        """Keep what is known by now of lineage, of wall time, and of the share that the driver itself was busy."""
        seconds, waited = time.perf_counter() - self._since, self.evaluator.waited
        spent = json.loads(self.store.meta("driver") or '{"wall_seconds": 0.0, "busy_seconds": 0.0}')
        spent["wall_seconds"] += seconds
        spent["busy_seconds"] += seconds - waited
        self.store.set_meta("driver", json.dumps(spent))
        self._since, self.evaluator.waited = time.perf_counter(), 0.0
        self.register.note_lineage()

    def _together(self) -> AbstractContextManager[None]:
        """One flush to disk for all that is written between two waits for workers."""
        return self.store.together() if self.live else nullcontext()

    def _note_end(self, items: int) -> None:
        """Keep what the run may have taken after one more step, so that a larger budget is known to be of use."""
        if self.live:
            self.store.set_meta("next generation", str(items))
            self.store.set_meta("next generation, tokens", str(self.tokens + self.dearest))

    def _answers(self, candidate: Candidate, rounds: range) -> tuple[Answer, ...] | None:
        """What a candidate answered in some rounds, and its costs; None if it failed."""
        responses = self.evaluator.responses(candidate.id, "search", rounds)
        measured = self.experiment.fitness.measured
        return None if responses is None else with_costs(responses, candidate.recipe, self.lineup.sizes, measured)

    def _item_scores(self, candidate: Candidate, rounds: range) -> Mapping[Item, float]:
        """What a candidate scored on each item; empty where nobody reads that, or if it failed."""
        answers = self._answers(candidate, rounds) if self.manager.reads_items else None
        return {} if answers is None else item_scores(answers, self.experiment.fitness.objectives)

    def _require(self, references: Mapping[str, Candidate]) -> None:
        """Without the anchors that constraints are relative to, nothing can be told."""
        for constraint in self.experiment.fitness.constraints:
            if constraint.relative_to is not None:
                needed = f"{constraint.relative_to}, which the constraint {constraint.name!r} compares with,"
                self.evaluator.refuse_failure(references[constraint.relative_to].id, "search", needed)
