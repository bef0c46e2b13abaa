"""`RunStore`: the run folder as the single truth about a run. Knows nothing of algorithms, models or scores.

Execution is at least once, accounting exactly once: a (candidate, phase) has any number of attempts, at most one result
per round and at most one final failure, and each is written in one transaction with the attempt that brought it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from evomerge.errors import StoreError
from evomerge.outcome import Job, Outcome, Scored
from evomerge.runs import tables
from evomerge.runs.lock import RunLock
from evomerge.runs.reader import RunReader
from evomerge.runs.records import Candidate, check
from evomerge.runs.schema import DATABASE, connect, create_database, snapshot, translated

__all__ = ["RunStore"]


class RunStore(RunReader):
    """One run. `create` and `open` are for the one driver, `read` is for everybody else.

    Example:
        >>> with RunStore.open(folder) as store:  # doctest: +SKIP
        ...     store.start_attempt(job)
        ...     store.record(outcome, job=job)

    Attributes:
        folder: the run folder.
        manifest: what was fixed when the run began (resolved experiment, digests, seed, versions).

    Raises:
        StoreError: (any method) the database is damaged, read-only or held by another program.
        DiskError: (any method that writes) the disk is full; nothing of this write is kept, all before it is.
    """

    def __init__(self, folder: Path, db: sqlite3.Connection, lock: RunLock | None) -> None:
        super().__init__(folder, db)
        self._lock = lock

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds a run."""
        return (folder / DATABASE).exists()

    def discard(self) -> None:
        """Removes a run that never had a candidate, and lets go of the folder.

        Raises:
            StoreError: it has candidates.
        """
        if self.candidates():
            raise StoreError(f"{self.folder}: expected a run without candidates; got one that has begun")
        self._db.close()
        (self.folder / DATABASE).unlink()
        self.close()

    @classmethod
    def create(cls, folder: Path, manifest: Mapping[str, Any]) -> Self:
        """A new run, opened. The folder is made if needed; a crash leaves a whole run or none.

        Args:
            folder: may hold anything but a run.
            manifest: plain data for JSON.

        Raises:
            StoreError: the folder holds a run, is a file, or cannot be written.
            DiskError: the disk is full.
        """
        with translated(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = RunLock(folder)
            try:
                if (folder / DATABASE).exists():
                    raise StoreError(f"{folder}: expected no run here; got one; resume it, or choose another folder")
                create_database(folder, {"manifest": json.dumps(manifest, allow_nan=False)})
                return cls(folder, connect(folder / DATABASE), lock)
            except BaseException:
                lock.release()
                raise

    @classmethod
    def open(cls, folder: Path) -> Self:
        """An existing run, to go on with it. Attempts of a driver that is gone become `lost`.

        Raises:
            StoreError: no run there, another driver has it, it is damaged or foreign, or cannot be written.
            DiskError: the disk is full.
        """
        with translated(folder):
            _must_exist(folder)
            lock = RunLock(folder)
            try:
                store = cls(folder, connect(folder / DATABASE), lock)
            except BaseException:
                lock.release()
                raise
        try:
            with store._transaction() as db:
                tables.lose_attempts(db)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, folder: Path) -> Self:
        """An existing run as it is at this moment: a copy in memory that does not change and cannot be written.

        Raises:
            StoreError: no run there, or it is damaged or foreign.
        """
        with translated(folder):
            _must_exist(folder)
            return cls(folder, snapshot(folder / DATABASE), None)

    def close(self) -> None:
        """Lets go of the run; a second call does nothing."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_meta(self, key: str, value: str) -> None:
        """Keeps a free-form note; the manifest cannot be changed."""
        if key == "manifest":
            raise ValueError("the manifest of a run is fixed when the run is created")
        with self._transaction() as db:
            tables.set_meta(db, key, value)

    def note(self, key: str, generation: int, value: Mapping[str, Any]) -> None:
        """Keeps plain data for JSON about one generation; those of all others stay as they are."""
        self.set_meta(f"{key} {generation}", json.dumps(value))

    def add_candidates(self, candidates: Sequence[Candidate]) -> None:
        """Registers candidates before anything costly starts, all or none. The same ones again change nothing.

        Raises:
            StoreError: an id is taken by a different candidate.
        """
        with self._transaction() as db:
            for candidate in candidates:
                if not tables.add_candidate(db, candidate):
                    stored = tables.get_candidate(db, candidate.id)
                    if stored != candidate:
                        raise StoreError(f"{self.folder}: {_clash(stored, candidate)}")

    def start_attempt(self, job: Job) -> None:
        """Notes that a job is on its way.

        Raises:
            StoreError: this attempt was started before.
        """
        with self._transaction() as db:
            if not tables.add_attempt(db, job):
                raise StoreError(f"{self._place(job)}: expected the number of a new attempt; got one that was started")

    def record(self, outcome: Outcome, *, job: Job, final: bool = False) -> bool:
        """Writes an outcome and the end of its attempt, in one transaction.

        Args:
            outcome: what a worker said.
            job: what it was asked.
            final: a failed candidate will not be tried again in this phase.

        Returns:
            False for a duplicate: the round has a result, or the phase a final failure already, and keeps it.

        Raises:
            StoreError: the outcome does not answer the job, or the attempt was never started.
        """
        check(outcome, job)
        with self._transaction() as db:
            if not tables.end_attempt(db, outcome, job):
                raise StoreError(f"{self._place(job)}: expected an attempt that was started; got one that was not")
            if tables.decided(db, job.candidate, job.phase, job.round):
                return False
            if isinstance(outcome, Scored):
                tables.add_result(db, outcome, job.items.digest)
            elif final:
                tables.add_failure(db, outcome)
            return True

    def forgive_failures(self, candidate: int | None = None) -> None:
        """Forgets final failures, so that they are tried again; the attempts stay on record.

        Args:
            candidate: whose; None is everybody's.
        """
        with self._transaction() as db:
            tables.clear_failures(db, candidate)

    def copy_result(self, job: Job, source: tuple[int, int]) -> bool:
        """Gives a job the result of an equal one, instead of doing it again.

        Args:
            job: what would have to be done.
            source: candidate and round whose result answers the same items for an equal recipe.

        Returns:
            False for a duplicate, as `record` does.

        Raises:
            StoreError: the recipes differ, or the source has no result.
        """
        with self._transaction() as db:
            if tables.decided(db, job.candidate, job.phase, job.round):
                return False
            if not tables.add_copy(db, job.candidate, job.phase, job.round, source):
                raise StoreError(
                    f"{self.folder}: candidate {job.candidate} can only take the {job.phase} result of a candidate "
                    f"with an equal recipe; candidate {source[0]} has another recipe or no result of round {source[1]}"
                )
            return True

    def set_estimates(self, estimates: Mapping[int, Mapping[str, Any]]) -> None:
        """Keeps what candidates are believed to score, plain data for JSON; a cache that any replay makes again."""
        with self._transaction() as db:
            tables.set_estimates(db, estimates)

    def _place(self, job: Job) -> str:
        return f"{self.folder}: candidate {job.candidate}, {job.phase}, attempt {job.attempt}"

    @contextmanager
    def together(self) -> Iterator[None]:
        """Makes all writes inside one: on the disk at the end, or none of them.

        Raises:
            DiskError: the disk is full; nothing of it is kept.
        """
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Writes that become one; inside another one, a part of it."""
        with translated(self.folder):
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have rolled back already
                    self._db.execute("ROLLBACK")
                raise


def _must_exist(folder: Path) -> None:
    if not (folder / DATABASE).is_file():
        raise StoreError(f"{folder}: expected a run (a folder with {DATABASE}); got none; check the path")


def _clash(stored: Candidate, proposed: Candidate) -> str:
    pairs = {name: (getattr(stored, name), getattr(proposed, name)) for name in Candidate.__dataclass_fields__}
    changes = "; ".join(
        f"{name}: expected {_brief(old)}, got {_brief(new)}" for name, (old, new) in pairs.items() if old != new
    )
    return (
        f"candidate {stored.id} differs from the one recorded ({changes}); the space, the algorithm or the seed has "
        "changed: restore it, or start a new run"
    )


def _brief(value: object) -> str:
    return str(getattr(value, "digest", value))[:80]
