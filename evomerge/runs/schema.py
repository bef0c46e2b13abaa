"""The database of a run: tables, connections, and what its errors mean to a user.

Write-ahead log, `synchronous=FULL`: a commit survives a power cut and costs one fsync where a rollback journal costs
four, and readers in other processes never wait for the driver nor hold it up. The price: while a run is live, only
processes on the driver's machine may read its folder. A run that was closed is the single file `run.db`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from evomerge.errors import DiskError, EvomergeError, StoreError

__all__ = ["DATABASE", "connect", "create_database", "snapshot", "translated"]

DATABASE = "run.db"
_VERSION = 5
_LARGE = 64 << 20
"""Bytes from which on a run is not copied into memory to be read."""
_APPLICATION = 0x45764D67  # "EvMg": tells a run from any other SQLite file

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE candidate (
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, label TEXT NOT NULL, generation INTEGER NOT NULL, slot INTEGER NOT NULL,
  genome BLOB, digest TEXT NOT NULL, recipe TEXT NOT NULL);
CREATE TABLE attempt (
  candidate INTEGER NOT NULL REFERENCES candidate, phase TEXT NOT NULL, number INTEGER NOT NULL,
  worker TEXT NOT NULL DEFAULT '', status TEXT NOT NULL DEFAULT 'started', stage TEXT NOT NULL DEFAULT '',
  reason TEXT NOT NULL DEFAULT '', started_at REAL NOT NULL, ended_at REAL,
  PRIMARY KEY (candidate, phase, number)) WITHOUT ROWID;
CREATE TABLE result (
  seq INTEGER PRIMARY KEY, candidate INTEGER NOT NULL REFERENCES candidate, phase TEXT NOT NULL,
  round INTEGER NOT NULL, items_digest TEXT NOT NULL, seconds TEXT NOT NULL, tokens TEXT NOT NULL, rewritten REAL,
  worker TEXT NOT NULL, cached_from INTEGER REFERENCES candidate, UNIQUE (candidate, phase, round));
CREATE TABLE response (
  candidate INTEGER NOT NULL, phase TEXT NOT NULL, round INTEGER NOT NULL, task TEXT NOT NULL, metric TEXT NOT NULL,
  items BLOB NOT NULL, outcomes BLOB NOT NULL, PRIMARY KEY (candidate, phase, round, task, metric),
  FOREIGN KEY (candidate, phase, round) REFERENCES result (candidate, phase, round)) WITHOUT ROWID;
CREATE TABLE estimate (candidate INTEGER PRIMARY KEY REFERENCES candidate, told TEXT NOT NULL);
CREATE TABLE failure (
  number INTEGER PRIMARY KEY, seq INTEGER NOT NULL, candidate INTEGER NOT NULL REFERENCES candidate,
  phase TEXT NOT NULL, stage TEXT NOT NULL, reason TEXT NOT NULL, UNIQUE (candidate, phase));
"""


def create_database(folder: Path, meta: Mapping[str, str]) -> None:
    """A new database, empty but for `meta`: built beside its place, moved there when it is whole and on the disk."""
    unfinished = folder / f"{DATABASE}.new"
    unfinished.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as db:
            marks = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION};"
            db.executescript(f"BEGIN; {_TABLES} {marks}")
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            db.execute("COMMIT")
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.rename(folder / DATABASE)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def connect(path: Path) -> sqlite3.Connection:
    """The driver's connection. Every statement outside a transaction commits by itself.

    Raises:
        StoreError: not a run, or made by a newer version.
    """
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=30)
    try:
        _check_version(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    db.row_factory = sqlite3.Row
    return db


def snapshot(path: Path) -> sqlite3.Connection:
    """A run that may be live, dead or on read-only storage, as it is now; writes nothing beside it.

    A copy in memory, unless the run is too large for that: then a reading transaction, or, where no driver can be at
    work, the file itself.

    Raises:
        StoreError: not a run, or made by a newer version.
    """
    if path.stat().st_size > _LARGE and (db := _in_place(path)) is not None:
        return db
    memory = sqlite3.connect(":memory:", isolation_level=None)
    try:
        _copy_all(path, memory)
        _check_version(memory, path)
        memory.execute("PRAGMA query_only = ON")
    except BaseException:
        memory.close()
        raise
    memory.row_factory = sqlite3.Row
    return memory


def _in_place(path: Path) -> sqlite3.Connection | None:
    """A read-only view of the file; what a driver commits from now on is not in it. None where only a copy will do."""
    how = _access(path)
    if how is None:
        return None
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, timeout=30)
    try:
        db.execute("BEGIN")
        _check_version(db, path)
        db.execute("PRAGMA query_only = ON")
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.OperationalError):  # read-only storage has no room for the index
            return None
        raise
    db.row_factory = sqlite3.Row
    return db


def _access(path: Path) -> str | None:
    """How to open a run so that nothing is written beside it; None where only a copy can be opened."""
    index, log = (path.with_name(f"{path.name}-{part}") for part in ("shm", "wal"))
    if index.exists():  # while a driver is there, and behind one that was killed
        return "mode=ro"
    commits_wait = log.exists() and log.stat().st_size > 0  # without their index, as in a copy of a live folder
    return None if commits_wait else "immutable=1"


def _copy_all(path: Path, target: sqlite3.Connection) -> None:
    try:
        if (how := _access(path)) is not None:
            _copy(path, target, how)
            if how != "mode=ro" and _access(path) != how:  # a driver began meanwhile
                _copy(path, target, "mode=ro")
            return
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            raise
    # Read-only storage has no room for the shared index of the write-ahead log; a copy elsewhere has.
    with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        for part in (path, path.with_name(f"{path.name}-wal")):
            if part.exists():
                shutil.copyfile(part, Path(folder, part.name))
        _copy(Path(folder, path.name), target, "mode=ro")


def _copy(path: Path, target: sqlite3.Connection, how: str) -> None:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=30)) as source:
        source.backup(target, sleep=0.01)


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise StoreError(
            f"{path}: expected the database of an evomerge run; got another program's; choose another folder"
        )
    if version != _VERSION:
        raise StoreError(
            f"{path}: expected run format {_VERSION}; got {version}; use the evomerge version that made this run"
        )


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Turns errors of the database and the file system into those of evomerge.

    Raises:
        DiskError: the disk is full or refuses to work.
        StoreError: the folder cannot be made or is read-only, or its database is damaged, foreign or held by another
            program.
    """
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        meaning = _of_sqlite(error, folder) if isinstance(error, sqlite3.Error) else _of_system(error, folder)
        if meaning is None:
            raise
        raise meaning from error


def _of_sqlite(error: sqlite3.Error, folder: Path) -> EvomergeError | None:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return _disk(error, folder)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return _read_only(error, folder)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreError(
                f"{folder / DATABASE}: expected the database of an evomerge run; got a file that is "
                f"damaged or not a database ({error}); restore it from a copy, or choose another folder"
            )
        case sqlite3.SQLITE_PROTOCOL | sqlite3.SQLITE_NOLFS:
            return _no_locks(error, folder)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreError(f"{folder / DATABASE}: another program keeps the database locked; close it, then resume")
    return None


def _of_system(error: OSError, folder: Path) -> EvomergeError | None:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO:
            return _disk(error, folder)
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return _read_only(error, folder)
        case errno.ENOLCK | errno.ENOSYS | errno.EOPNOTSUPP:
            return _no_locks(error, folder)
        case errno.ENOTDIR | errno.EEXIST:
            return StoreError(f"{folder}: expected a folder; got a file; choose another run folder")
        case errno.ENOENT | errno.ENAMETOOLONG | errno.ELOOP | errno.EINVAL:
            return StoreError(
                f"{folder}: expected a place where folders can be made; got {error.strerror}; choose another run "
                "folder with --out"
            )
    return None


def _disk(error: Exception, folder: Path) -> DiskError:
    return DiskError(
        f"{folder}: the disk refused a write ({error}); nothing recorded is lost: free space, then run the same "
        "command to resume"
    )


def _no_locks(error: Exception, folder: Path) -> StoreError:
    return StoreError(
        f"{folder}: expected a file system with locks; got one without ({error}), where two drivers could spoil a run; "
        "put the run folder on a local disk with --out (workers never open it), or copy the run there to go on"
    )


def _read_only(error: Exception, folder: Path) -> StoreError:
    return StoreError(
        f"{folder}: expected a folder that can be written; got read-only ({error}); change its permissions or copy the "
        "run elsewhere (`status` and `report` work without)"
    )
