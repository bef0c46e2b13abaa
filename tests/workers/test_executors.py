"""What every executor promises, checked on all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evomerge.config import RayConfig
from evomerge.errors import DiskError, PoolError, RunError
from evomerge.outcome import Failed, Job, Outcome, Scored
from evomerge.workers import Executor, FaultyExecutor, SerialExecutor

Make = Callable[..., Executor]

quiet_ray = [
    pytest.mark.ray,
    # Ray leaves sockets and subprocess handles of its own to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=["serial", "faulty", pytest.param("ray", marks=quiet_ray)])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Executor] = []

    def build(factory: Any) -> Executor:
        if request.param == "ray":
            request.getfixturevalue("cluster")
            from evomerge.workers.ray_executor import RayExecutor

            made.append(RayExecutor(RayConfig(kind="ray", workers=2, cpus=0.5), factory))
        else:
            made.append({"serial": SerialExecutor, "faulty": FaultyExecutor}[request.param](factory))
        return made[-1]

    yield build
    for executor in made:
        executor.close()


def drain(executor: Executor, count: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + 60
    while len(outcomes) < count and time.monotonic() < deadline:
        outcomes += executor.wait(2.0)
    return outcomes


def submit_and_drain(executor: Executor, job: Job) -> None:
    executor.submit(job)
    drain(executor, 1)


class TestEveryExecutor:
    def test_start_tells_what_the_worker_found(self, make: Make, toys: Any) -> None:
        executor = make(toys())
        info = executor.start()
        assert (info.sizes, info.pool_digest) == ({"t": 10}, "d")
        assert executor.capacity >= 1

    @pytest.mark.parametrize(
        ("act", "expected"), [("stop", (RunError, "the server is gone")), ("full", (DiskError, "no room"))]
    )
    def test_what_all_candidates_need_ends_the_run_when_it_is_gone(
        self,
        make: Make,
        toys: Any,
        job_of: Callable[..., Job],
        act: str,
        expected: tuple[type[Exception], str],
    ) -> None:
        executor = make(toys({0: act}))
        executor.start()
        with pytest.raises(expected[0], match=expected[1]):
            submit_and_drain(executor, job_of(0))

    def test_every_job_is_answered_exactly_once(self, make: Make, toys: Any, job_of: Callable[..., Job]) -> None:
        executor = make(toys({2: "fail", 4: "raise"}))
        executor.start()
        for number in range(7):
            executor.submit(job_of(number))
        got = drain(executor, 7)
        outcomes = {outcome.candidate: outcome for outcome in got}
        assert len(got) == 7
        assert sorted(outcomes) == list(range(7))
        assert executor.wait(0.0) == []
        for number in (0, 1, 3, 5, 6):
            scored = outcomes[number]
            assert isinstance(scored, Scored)
            assert scored.responses[0].values == (number + 0.0, number + 3.0, number + 5.0)

    def test_failures_come_back_as_records(self, make: Make, toys: Any, job_of: Callable[..., Job]) -> None:
        executor = make(toys({0: "fail", 1: "raise"}))
        executor.start()
        executor.submit(job_of(0))
        executor.submit(job_of(1))
        own, broken = sorted(drain(executor, 2), key=lambda outcome: outcome.candidate)
        assert isinstance(own, Failed)
        assert (own.stage, own.reason, own.retry) == ("materialize", "as asked", False)
        assert isinstance(broken, Failed)
        assert (broken.stage, broken.reason, broken.retry) == ("worker", "ValueError: a broken promise", True)

    def test_waiting_for_nothing_takes_no_time(self, make: Make, toys: Any) -> None:
        executor = make(toys())
        executor.start()
        began = time.monotonic()
        assert executor.wait(30.0) == []
        assert time.monotonic() - began < 15

    def test_what_the_worker_says_on_purpose_keeps_its_type(self, make: Make, toys: Any) -> None:
        with pytest.raises(PoolError, match=r"^expected 2 layers in 'rev'; got 3$"):
            make(toys(how="pool")).start()

    def test_any_other_error_of_a_start_keeps_its_traceback(self, make: Make, toys: Any) -> None:
        with pytest.raises(RunError, match="no worker could be started") as caught:
            make(toys(how="error")).start()
        assert "RuntimeError: no such device" in str(caught.value)
        assert "__call__" in str(caught.value)

    def test_closing_twice_is_closing_once(self, make: Make, toys: Any, job_of: Callable[..., Job]) -> None:
        executor = make(toys())
        executor.start()
        executor.submit(job_of(0))
        executor.close()
        executor.close()
