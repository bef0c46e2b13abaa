from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from evomerge.outcome import ItemSet, Job, Scored
from evomerge.workers.pace import Pace

JobOf = Callable[..., Job]


def scored(**seconds: float) -> Scored:
    return Scored(candidate=0, phase="search", responses=(), seconds=seconds)


def test_nothing_is_said_before_enough_was_seen(job_of: JobOf) -> None:
    pace = Pace(1800.0)
    for _ in range(4):
        pace.saw(job_of(0), scored(forward=1.0))
    assert (pace.expected(job_of(0)), pace.latest, pace.deadline(job_of(0))) == (None, None, 1800.0)


def test_patience_grows_with_the_work(job_of: JobOf) -> None:
    job, pace = job_of(0), Pace(1e6)
    for _ in range(20):
        pace.saw(job, scored(materialize=5.0, forward=30.0, evaluate=10.0))
    large = replace(job, items=ItemSet.of({"t": tuple(range(30))}))
    assert large.work == 10 * job.work
    assert pace.expected(job) == pytest.approx(45.0)
    assert pace.expected(large) == pytest.approx(405.0)
    assert pace.deadline(large) == pytest.approx(4050.0)
    assert pace.latest == pytest.approx(45.0)


def test_patience_has_a_floor_and_a_ceiling(job_of: JobOf) -> None:
    pace = Pace(300.0)
    for _ in range(20):
        pace.saw(job_of(0), scored(forward=0.1))
    assert pace.deadline(job_of(0)) == 60.0
    assert pace.deadline(replace(job_of(0), items=ItemSet.of({"t": tuple(range(9000))}))) == 300.0


def test_a_candidate_in_shards_is_made_once_by_a_worker(job_of: JobOf) -> None:
    """Or a worker that makes the next one would be taken to be stuck."""
    pace = Pace(1e6)
    for candidate in range(3):
        for shard in range(40):
            outcome = scored(materialize=0.0 if shard else 300.0, forward=1.0)
            pace.saw(job_of(candidate), replace(outcome, worker="one"))
        pace.saw(job_of(candidate), replace(scored(materialize=200.0, forward=1.0), worker="two"))
    assert pace.expected(job_of(9)) == pytest.approx(251.0)
    assert pace.deadline(job_of(9)) == pytest.approx(2510.0)


def test_workers_that_measure_nothing_teach_nothing(job_of: JobOf) -> None:
    pace = Pace(300.0)
    for _ in range(20):
        pace.saw(job_of(0), scored())
    assert pace.expected(job_of(0)) is None
