"""Every statement that reads or writes the tables of a run, as functions of a connection. The caller commits."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.outcome import Failed, Job, Outcome, Phase, Responses, Scored
from evomerge.runs.records import Attempt, Candidate, Failure, Result, pack, unpack

__all__ = [
    "add_attempt",
    "add_candidate",
    "add_copy",
    "add_failure",
    "add_result",
    "clear_failures",
    "decided",
    "end_attempt",
    "get_attempts",
    "get_candidate",
    "get_candidates",
    "get_counts",
    "get_digests",
    "get_estimates",
    "get_failures",
    "get_labels",
    "get_meta",
    "get_notes",
    "get_order",
    "get_results",
    "get_results_after",
    "get_spans",
    "lose_attempts",
    "set_estimates",
    "set_meta",
]

_NEXT_SEQ = "(SELECT COALESCE(MAX(seq) + 1, 0) FROM result)"  # results are never deleted, so there are no gaps


def get_meta(db: sqlite3.Connection, key: str) -> str | None:
    """The value of a key, if it was set."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else row["value"]


def set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    """Sets a key."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def get_notes(db: sqlite3.Connection, key: str) -> dict[str, str]:
    """The values of the keys that begin with a word and a space, by what follows."""
    rows = db.execute("SELECT key, value FROM meta WHERE key GLOB ?", (f"{key} *",))
    return {row["key"].removeprefix(f"{key} "): row["value"] for row in rows}


def add_candidate(db: sqlite3.Connection, candidate: Candidate) -> bool:
    """False if the id is taken."""
    return _changed(db, "INSERT OR IGNORE INTO candidate VALUES (?, ?, ?, ?, ?, ?, ?, ?)", candidate.to_row())


def get_candidate(db: sqlite3.Connection, number: int) -> Candidate:
    """The candidate of an id that is taken."""
    return Candidate.from_row(dict(db.execute("SELECT * FROM candidate WHERE id = ?", (number,)).fetchone()))


def get_candidates(db: sqlite3.Connection) -> list[Candidate]:
    """Every candidate, by id."""
    return [Candidate.from_row(row) for row in _rows(db, "SELECT * FROM candidate ORDER BY id")]


def add_attempt(db: sqlite3.Connection, job: Job) -> bool:
    """A job is on its way; False if this attempt was started before."""
    sql = "INSERT OR IGNORE INTO attempt (candidate, phase, number, started_at) VALUES (?, ?, ?, ?)"
    return _changed(db, sql, (job.candidate, job.phase, job.attempt, time.time()))


def end_attempt(db: sqlite3.Connection, outcome: Outcome, job: Job) -> bool:
    """What became of an attempt; False if it was never started."""
    how = ("failed", outcome.stage, outcome.reason) if isinstance(outcome, Failed) else ("scored", "", "")
    sql = (
        "UPDATE attempt SET worker = ?, status = ?, stage = ?, reason = ?, ended_at = ? "
        "WHERE candidate = ? AND phase = ? AND number = ?"
    )
    return _changed(db, sql, (outcome.worker, *how, time.time(), job.candidate, job.phase, job.attempt))


def lose_attempts(db: sqlite3.Connection) -> None:
    """Attempts that nobody runs any more."""
    sql = "UPDATE attempt SET status = 'lost', reason = 'the driver ended', ended_at = ? WHERE status = 'started'"
    db.execute(sql, (time.time(),))


def get_attempts(db: sqlite3.Connection) -> list[Attempt]:
    """Every attempt, by candidate, phase and number."""
    return [Attempt(**row) for row in _rows(db, "SELECT * FROM attempt ORDER BY candidate, phase, number")]


def decided(db: sqlite3.Connection, candidate: int, phase: Phase, number: int) -> bool:
    """Whether there is a result of a round, or a final failure of the phase."""
    sql = (
        "SELECT 1 FROM result WHERE candidate = :candidate AND phase = :phase AND round = :round "
        "UNION SELECT 1 FROM failure WHERE candidate = :candidate AND phase = :phase"
    )
    return db.execute(sql, {"candidate": candidate, "phase": phase, "round": number}).fetchone() is not None


def add_failure(db: sqlite3.Connection, failed: Failed) -> None:
    """A final failure."""
    row = (failed.candidate, failed.phase, failed.stage, failed.reason)
    sql = f"INSERT INTO failure (seq, candidate, phase, stage, reason) VALUES ({_NEXT_SEQ}, ?, ?, ?, ?)"
    db.execute(sql, row)  # its seq is that of the first result after it


def clear_failures(db: sqlite3.Connection, candidate: int | None) -> None:
    """No failure of a candidate, or of any, is final any more."""
    db.execute(
        "DELETE FROM failure WHERE :candidate IN (candidate, -1)", {"candidate": -1 if candidate is None else candidate}
    )


def get_failures(db: sqlite3.Connection) -> list[Failure]:
    """Every final failure, by candidate and phase."""
    sql = "SELECT candidate, phase, stage, reason FROM failure ORDER BY candidate, phase"
    return [Failure(**row) for row in _rows(db, sql)]


def get_order(db: sqlite3.Connection, phase: Phase) -> list[int]:
    """Candidates in the order in which they were settled: their first round scored, or given up."""
    sql = (
        "SELECT candidate FROM (SELECT candidate, seq, 1 AS scored, 0 AS number FROM result "
        "WHERE phase = :phase AND round = 0 "
        "UNION ALL SELECT candidate, seq, 0, number FROM failure WHERE phase = :phase) ORDER BY seq, scored, number"
    )
    return [row["candidate"] for row in db.execute(sql, {"phase": phase})]


def add_result(db: sqlite3.Connection, scored: Scored, items_digest: str) -> None:
    """A result and its items."""
    key = (scored.candidate, scored.phase, scored.round)
    seconds, tokens = (json.dumps(dict(spent), sort_keys=True) for spent in (scored.seconds, scored.tokens))
    row = (*key, items_digest, seconds, tokens, scored.rewritten, scored.worker)
    db.execute(f"INSERT INTO result VALUES ({_NEXT_SEQ}, ?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
    items = [(*key, r.task, r.metric, pack(r.items, "q"), pack(r.values, "d")) for r in scored.responses]
    db.executemany("INSERT INTO response VALUES (?, ?, ?, ?, ?, ?, ?)", items)


def set_estimates(db: sqlite3.Connection, estimates: Mapping[int, Mapping[str, Any]]) -> None:
    """What candidates are believed to score, in place of what was believed before."""
    rows = [(number, json.dumps(told, sort_keys=True)) for number, told in estimates.items()]
    db.executemany("INSERT OR REPLACE INTO estimate VALUES (?, ?)", rows)


def get_estimates(db: sqlite3.Connection) -> dict[int, dict[str, Any]]:
    """Every estimate, by candidate."""
    return {row["candidate"]: json.loads(row["told"]) for row in _rows(db, "SELECT * FROM estimate ORDER BY candidate")}


def add_copy(db: sqlite3.Connection, candidate: int, phase: Phase, number: int, source: tuple[int, int]) -> bool:
    """A round's result and items from another candidate and round; False if it has none, or if the recipes differ."""
    copied = _changed(
        db,
        f"INSERT INTO result SELECT {_NEXT_SEQ}, twin.id, phase, ?, items_digest, '{{}}', tokens, NULL, '', source.id "
        "FROM result JOIN candidate AS source ON source.id = result.candidate "
        "JOIN candidate AS twin ON twin.digest = source.digest "
        "WHERE twin.id = ? AND phase = ? AND source.id = ? AND round = ?",
        (number, candidate, phase, *source),
    )
    sql = (
        "INSERT INTO response SELECT ?, phase, ?, task, metric, items, outcomes FROM response "
        "WHERE phase = ? AND candidate = ? AND round = ?"
    )
    return copied and _changed(db, sql, (candidate, number, phase, *source))


def get_results(db: sqlite3.Connection, phase: Phase | None = None) -> list[Result]:
    """Results in order of completion: all, or those of one phase."""
    which = "" if phase is None else "WHERE phase = :phase"
    return _results(db, which, which, {"phase": phase})


def get_results_after(db: sqlite3.Connection, seq: int) -> list[Result]:
    """Results that came after one, in order of completion."""
    newer = "WHERE seq > :seq"
    places = f"WHERE (candidate, phase, round) IN (SELECT candidate, phase, round FROM result {newer})"
    return _results(db, newer, places, {"seq": seq})


def _results(db: sqlite3.Connection, which: str, whose: str, values: Mapping[str, object]) -> list[Result]:
    """Results by one condition, and the responses to them by another."""
    answers = _answers(db, whose, values)
    return [
        Result(
            **{**row, "seconds": json.loads(row["seconds"]), "tokens": json.loads(row["tokens"])},
            responses=tuple(answers[_place(row)]),
        )
        for row in _rows(db, f"SELECT * FROM result {which} ORDER BY seq", values)
    ]


def get_spans(db: sqlite3.Connection, last: int) -> list[tuple[int, float, float]]:
    """Candidate, start and end (unix seconds) of the attempts behind the latest results."""
    sql = (
        "SELECT candidate, started_at, ended_at FROM attempt JOIN "
        "(SELECT DISTINCT candidate, phase FROM (SELECT candidate, phase FROM result ORDER BY seq DESC LIMIT ?)) "
        "USING (candidate, phase) WHERE status = 'scored'"
    )
    return [tuple(row) for row in db.execute(sql, (last,))]


def get_labels(db: sqlite3.Connection) -> dict[int, str]:
    """Labels of the candidates that have one."""
    return {row["id"]: row["label"] for row in db.execute("SELECT id, label FROM candidate WHERE label != ''")}


def get_digests(db: sqlite3.Connection) -> dict[int, str]:
    """Digest of every candidate's recipe."""
    return {row["id"]: sys.intern(row["digest"]) for row in db.execute("SELECT id, digest FROM candidate")}


def get_counts(db: sqlite3.Connection) -> dict[str, int]:
    """Numbers of `candidates`, `generations`, `results`, `copied` among them, `failures`, and `attempt STATUS`.

    And of candidates with results: `searched` and `confirmed`; of those that the search recorded: `asked`.
    """
    one = {
        "candidates": "SELECT COUNT(*) FROM candidate",
        "asked": "SELECT COUNT(*) FROM candidate WHERE kind <> 'answer'",
        "generations": "SELECT COALESCE(MAX(generation) + 1, 0) FROM candidate",
        "searched": "SELECT COUNT(DISTINCT candidate) FROM result WHERE phase = 'search'",
        "results": "SELECT COUNT(*) FROM result",
        "confirmed": "SELECT COUNT(DISTINCT candidate) FROM result WHERE phase = 'confirm'",
        "copied": "SELECT COUNT(*) FROM result WHERE cached_from IS NOT NULL",
        "failures": "SELECT COUNT(*) FROM failure",
    }
    counts = {name: int(db.execute(sql).fetchone()[0]) for name, sql in one.items()}
    statuses = db.execute("SELECT status, COUNT(*) AS number FROM attempt GROUP BY status ORDER BY status")
    return counts | {f"attempt {row['status']}": row["number"] for row in statuses}


_Place = tuple[int, str, int]


def _place(row: Mapping[str, Any]) -> _Place:
    return row["candidate"], row["phase"], row["round"]


def _answers(db: sqlite3.Connection, which: str, values: Mapping[str, object]) -> dict[_Place, list[Responses]]:
    """Responses by candidate, phase and round; equal lists of items are one object, for most candidates share them."""
    found: dict[_Place, list[Responses]] = {}
    known: dict[bytes, tuple[int, ...]] = {}
    for row in db.execute(f"SELECT * FROM response {which} ORDER BY candidate, phase, round, task, metric", values):
        items = known.get(row["items"])
        if items is None:
            items = known[row["items"]] = unpack(row["items"], "q")
        answer = Responses(
            task=sys.intern(row["task"]),
            metric=sys.intern(row["metric"]),
            items=items,
            values=unpack(row["outcomes"], "d"),
        )
        found.setdefault(_place(row), []).append(answer)
    return found


def _rows(db: sqlite3.Connection, sql: str, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
    return [dict(row) for row in db.execute(sql, values or {})]


def _changed(db: sqlite3.Connection, sql: str, row: Sequence[object]) -> bool:
    return db.execute(sql, row).rowcount > 0
