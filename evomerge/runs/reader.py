"""`RunReader`: what a run's database says. Knows nothing of algorithms, models or scores, and writes nothing."""

from __future__ import annotations

import gc
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.outcome import Phase, Responses, together
from evomerge.recipe import Sizes
from evomerge.runs import tables
from evomerge.runs.archive import archive
from evomerge.runs.records import Attempt, Candidate, Failure, Result
from evomerge.runs.schema import translated

__all__ = ["RunReader"]


class RunReader:
    """The reading half of a run's store; see `RunStore`.

    Attributes:
        folder: the run folder.
        manifest: what was fixed when the run began (resolved experiment, digests, seed, versions).

    Raises:
        StoreError: (any method) the database is damaged, or held by another program.
    """

    def __init__(self, folder: Path, db: sqlite3.Connection) -> None:
        self.folder = folder
        self._db = db
        self.manifest: dict[str, Any] = json.loads(tables.get_meta(db, "manifest") or "{}")

    def meta(self, key: str) -> str | None:
        """A free-form note, for example `state`; None if it was never set."""
        with translated(self.folder):
            return tables.get_meta(self._db, key)

    def notes(self, key: str) -> dict[str, Any]:
        """What `note` kept, by generation, in their order."""
        with translated(self.folder):
            found = tables.get_notes(self._db, key)
        return {generation: json.loads(found[generation]) for generation in sorted(found, key=int)}

    @property
    def experiment(self) -> dict[str, Any]:
        """The resolved experiment as it was run last: the manifest's, with what later starts changed."""
        recorded = self.meta("experiment")
        experiment: dict[str, Any] = self.manifest["experiment"] if recorded is None else json.loads(recorded)
        return experiment

    @property
    def sizes(self) -> Sizes | None:
        """How large the models are, as recorded when the run began; None in runs that did not record it."""
        recorded = self.manifest.get("sizes")
        return None if recorded is None else Sizes.from_data(recorded)

    def estimates(self) -> dict[int, dict[str, Any]]:
        """What `set_estimates` kept last, by candidate."""
        with translated(self.folder):
            return tables.get_estimates(self._db)

    def candidates(self) -> list[Candidate]:
        """Every candidate, by id."""
        with translated(self.folder), _unhindered():
            return tables.get_candidates(self._db)

    def digests(self) -> dict[int, str]:
        """Digest of every candidate's recipe, by id."""
        with translated(self.folder):
            return tables.get_digests(self._db)

    def candidate(self, number: int) -> Candidate:
        """The candidate of an id that is recorded."""
        with translated(self.folder):
            return tables.get_candidate(self._db, number)

    def labels(self) -> dict[int, str]:
        """Labels of the candidates that have one, which are the anchors, by id."""
        with translated(self.folder):
            return tables.get_labels(self._db)

    def spans(self, last: int) -> list[tuple[int, float, float]]:
        """Candidate, start and end (unix seconds) of the attempts behind the latest results."""
        with translated(self.folder):
            return tables.get_spans(self._db, last)

    def counts(self) -> dict[str, int]:
        """How much there is of what, without reading it; see `evomerge.runs.tables.get_counts`."""
        with translated(self.folder):
            return tables.get_counts(self._db)

    def results(self, phase: Phase | None = None) -> list[Result]:
        """Every result, or those of one phase, in order of completion."""
        with translated(self.folder), _unhindered():
            return tables.get_results(self._db, phase)

    def results_after(self, seq: int) -> list[Result]:
        """Every result that came after the one of this number, in order of completion."""
        with translated(self.folder), _unhindered():
            return tables.get_results_after(self._db, seq)

    def responses(self, phase: Phase) -> dict[int, tuple[Responses, ...]]:
        """What every candidate answered in one phase, all its rounds together, in order of first completion.

        Candidates that were given up are left out.
        """
        failed = {failure.candidate for failure in self.failures() if failure.phase == phase}
        rounds: dict[int, list[tuple[Responses, ...]]] = {}
        for result in self.results(phase):
            if result.candidate not in failed:
                rounds.setdefault(result.candidate, []).append(result.responses)
        return {candidate: together(each) for candidate, each in rounds.items()}

    def failures(self) -> list[Failure]:
        """Every (candidate, phase) that was given up."""
        with translated(self.folder):
            return tables.get_failures(self._db)

    def order(self, phase: Phase) -> list[int]:
        """Candidates in the order in which they were settled: their first round scored, or given up.

        One that was given up in a later round comes twice.
        """
        with translated(self.folder):
            return tables.get_order(self._db, phase)

    def attempts(self) -> list[Attempt]:
        """Every attempt, by candidate, phase and number."""
        with translated(self.folder), _unhindered():
            return tables.get_attempts(self._db)

    def archive(self) -> bytes:
        """What a deterministic run determines, as canonical bytes; see `evomerge.runs.archive`."""
        return archive(self.candidates(), self.results(), self.failures())


@contextmanager
def _unhindered() -> Iterator[None]:
    """Many objects are made and none is garbage: collections among them would take longer than making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
