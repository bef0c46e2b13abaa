"""A candidate that ends processes is found out, and a driver that somebody kills costs no candidate anything."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import DiskError, PoolError, RunError
from evomerge.outcome import Failed, Scored
from evomerge.runs import RunStore
from evomerge.workers import SerialExecutor

TOY = """
import os, signal
from dataclasses import dataclass
from evomerge.outcome import Responses, Scored
from evomerge.workers import WorkerInfo

@dataclass
class Toy:
    act: str = ""
    def __call__(self):
        return self
    def info(self):
        return WorkerInfo(sizes={"t": 10})
    def run(self, job):
        if job.candidate == 1 and self.act == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        ((task, ids),) = job.items.tasks
        responses = (Responses(task=task, metric="acc", items=ids, values=(1.0,) * len(ids)),)
        return Scored(candidate=job.candidate, phase=job.phase, round=job.round, responses=responses)
"""

DRIVER = """
import sys, os, signal
from pathlib import Path
from toy import Toy
from evomerge.evaluator import Evaluator
from evomerge.outcome import ItemSet, Job
from evomerge.recipe import uniform
from evomerge.runs import Candidate, RunStore
from evomerge.stopping import Stop
from evomerge.workers import SerialExecutor

if __name__ == "__main__":
    folder, act = Path(sys.argv[1]), sys.argv[2]
    store = RunStore.open(folder) if RunStore.exists(folder) else RunStore.create(folder, {})
    recipes = [uniform((name,), layers=2, dtype="float32") for name in "abc"]
    store.add_candidates([Candidate(id=i, kind="search", generation=0, slot=i, genome=(0.5,), recipe=recipes[i])
                          for i in range(3)])
    jobs = [Job(candidate=i, phase="search", recipe=recipes[i], items=ItemSet.of({"t": (1, 2)})) for i in range(3)]
    executor = SerialExecutor(Toy("die" if act == "die" else ""))
    if act == "killed":  # from outside, while candidate 1 is at work
        executor.wait = lambda timeout: os.kill(os.getpid(), signal.SIGKILL)
    executor.start()
    for _ in Evaluator(store, executor).settle(jobs, Stop()):
        pass
    store.close()
"""


@pytest.fixture
def start(tmp_path: Path) -> Any:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER))

    def start(act: str) -> int:
        command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "run"), act]
        return subprocess.run(command, check=False, timeout=120, capture_output=True).returncode

    return start


def test_a_candidate_that_ends_the_driver_is_failed_at_the_third_start(start: Any, tmp_path: Path) -> None:
    assert [start("die") for _ in range(3)] == [-signal.SIGSEGV, -signal.SIGSEGV, 0]
    with RunStore.read(tmp_path / "run") as store:
        (failure,) = store.failures()
        assert failure.candidate == 1
        assert (
            "ended a process of its own (signal SIGSEGV), after drivers that tried it ended as well" in failure.reason
        )
        assert [result.candidate for result in store.results()] == [0, 2]


def test_a_driver_killed_from_outside_charges_nobody(start: Any, tmp_path: Path) -> None:
    assert [start("killed") for _ in range(4)] == [-signal.SIGKILL] * 4
    assert start("") == 0
    with RunStore.read(tmp_path / "run") as store:
        assert store.failures() == []
        assert len(store.results()) == 3


def test_alone_or_not_makes_no_difference_to_a_sound_candidate(tmp_path: Path, toys: Any, job_of: Any) -> None:
    executor = SerialExecutor(toys())
    executor.start()
    outcomes = []
    for alone in (False, True, False):
        executor.submit(_with(job_of(3), alone))
        outcomes += executor.wait(0)
    assert all(isinstance(outcome, Scored) for outcome in outcomes)
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_worker_that_cannot_start_alone_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toys: Any, job_of: Any
) -> None:
    flag = tmp_path / "flag"
    executor = SerialExecutor(toys(flag=flag, how="pool"))
    executor.start()
    flag.touch()
    executor.submit(_with(job_of(0), True))
    with pytest.raises(PoolError, match="expected 2 layers"):
        executor.wait(0)


def test_a_candidate_that_takes_a_server_down_alone_is_failed(tmp_path: Path, toys: Any, job_of: Any) -> None:
    flag = tmp_path / "flag"
    executor = SerialExecutor(toys({0: "stop"}, flag=flag, how="pool"))
    executor.start()
    for number, alone in ((0, True), (1, False)):
        executor.submit(_with(job_of(number), alone))
    (outcome,) = executor.wait(0)
    assert isinstance(outcome, Failed)
    assert not outcome.retry
    assert "the server is gone" in outcome.reason
    flag.touch()
    with pytest.raises(PoolError):  # no worker can be made any more, but the failure was told before
        executor.wait(0)


def test_a_full_disk_is_nobodys_fault_alone_or_not(toys: Any, job_of: Any) -> None:
    executor = SerialExecutor(toys({0: "full"}))
    executor.start()
    for alone in (True, False):
        executor.submit(_with(job_of(0), alone))
        with pytest.raises(DiskError, match="no room"):
            executor.wait(0)


def test_a_server_that_is_gone_charges_nobody_before_that(toys: Any, job_of: Any) -> None:
    executor = SerialExecutor(toys({0: "stop"}))
    executor.start()
    executor.submit(_with(job_of(0), False))
    with pytest.raises(RunError, match="the server is gone"):
        executor.wait(0)


def _with(job: Any, alone: bool) -> Any:
    return replace(job, alone=alone)


def test_a_process_that_leaves_is_a_failure(tmp_path: Path, toys: Any, job_of: Any) -> None:
    executor = SerialExecutor(toys({5: "die"}))
    executor.start()
    executor.submit(_with(job_of(5), True))
    (outcome,) = executor.wait(0)
    assert isinstance(outcome, Failed)
    assert not outcome.retry
    assert "signal SIGKILL" in outcome.reason
