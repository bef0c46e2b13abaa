from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import PoolError, RunError
from evomerge.outcome import Failed, Job, Outcome, Scored
from evomerge.workers import Fault, FaultyExecutor

JobOf = Callable[..., Job]


def play(executor: FaultyExecutor, jobs: list[Job]) -> list[tuple[float, Outcome]]:
    executor.start()
    for job in jobs:
        executor.submit(job)
    replies = []
    while got := executor.wait(1e9):
        replies += [(executor.now, outcome) for outcome in got]
    return replies


def tell(replies: list[tuple[float, Outcome]]) -> list[tuple[float, int, str]]:
    return [(at, o.candidate, o.stage if isinstance(o, Failed) else "scored") for at, o in replies]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("die"), [(0.5, 0, "worker"), (1.0, 1, "scored"), (1.5, 2, "scored")]),
        (Fault("hang"), [(1.0, 1, "scored"), (2.0, 2, "scored"), (60.0, 0, "timeout")]),
        (Fault("lose"), [(1.0, 1, "scored"), (2.0, 2, "scored"), (60.0, 0, "timeout")]),
        (Fault("late", 5), [(1.0, 1, "scored"), (2.0, 2, "scored"), (60.0, 0, "timeout"), (65.0, 0, "scored")]),
        (Fault("repeat", 5), [(1.0, 0, "scored"), (1.0, 1, "scored"), (2.0, 2, "scored"), (6.0, 0, "scored")]),
        (Fault("slow", 3), [(1.0, 1, "scored"), (2.0, 2, "scored"), (4.0, 0, "scored")]),
    ],
)
def test_faults_follow_the_script(toys: Any, job_of: JobOf, fault: Fault, expected: list[Any]) -> None:
    executor = FaultyExecutor(toys(), script=lambda job: fault if job.candidate == 0 else None)
    replies = play(executor, [job_of(number) for number in range(3)])
    assert tell(replies) == expected
    assert all(outcome.retry for _, outcome in replies if isinstance(outcome, Failed))


@pytest.mark.parametrize(("kind", "runs"), [("lose", 1), ("late", 1), ("die", 0), ("hang", 0)])
def test_a_lost_reply_was_worked_for(toys: Any, job_of: JobOf, tmp_path: Path, kind: Any, runs: int) -> None:
    trail = tmp_path / "trail"
    trail.touch()
    play(FaultyExecutor(toys(trail=trail), script=lambda _: Fault(kind)), [job_of(0)])
    assert len(trail.read_text().splitlines()) == runs


def test_the_script_can_spare_a_second_attempt(toys: Any, job_of: JobOf) -> None:
    executor = FaultyExecutor(toys(), script=lambda job: Fault("die") if job.attempt == 1 else None)
    ((_, first),) = play(executor, [job_of(0)])
    executor.submit(job_of(0, attempt=2))
    (second,) = executor.wait(10)
    assert isinstance(first, Failed)
    assert isinstance(second, Scored)


def test_waiting_moves_the_clock_no_further_than_asked(toys: Any, job_of: JobOf) -> None:
    executor = FaultyExecutor(toys())
    executor.start()
    executor.submit(job_of(0))
    assert executor.wait(0.25) == []
    assert executor.now == 0.25
    assert len(executor.wait(10)) == 1
    assert executor.now == 1.0


def test_one_broken_start_is_tried_again_and_two_are_not(toys: Any) -> None:
    broken = RuntimeError("no such device")
    FaultyExecutor(toys(), start_errors=[broken]).start()
    with pytest.raises(RunError, match="no such device"):
        FaultyExecutor(toys(), start_errors=[broken, broken]).start()
    with pytest.raises(PoolError, match="differs"):
        FaultyExecutor(toys(), start_errors=[PoolError("vocabulary differs")]).start()


def test_a_run_whose_workers_cannot_be_replaced_ends(toys: Any, job_of: JobOf) -> None:
    broken = RuntimeError("no such device")
    executor = FaultyExecutor(toys(), workers=1, script=lambda _: Fault("die"), start_errors=[None, broken, broken])
    executor.start()
    executor.submit(job_of(0))
    (lost,) = executor.wait(10)
    assert isinstance(lost, Failed)
    assert executor.capacity == 0
    executor.submit(job_of(1))
    with pytest.raises(RunError, match="no worker is left"):
        executor.wait(10)
