"""What only Ray can do: other processes, and their deaths."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from evomerge.config import RayConfig, WorkerRange
from evomerge.errors import ConfigError, DiskError, RunError
from evomerge.outcome import Failed, ItemSet, Job, Outcome, Scored

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and subprocess handles of its own to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

JobOf = Callable[..., Job]


@pytest.fixture
def make(cluster: None) -> Iterator[Callable[..., Any]]:
    from evomerge.workers.ray_executor import RayExecutor

    made: list[RayExecutor] = []

    def build(factory: Any, *, threads: int = 1, shard: int | None = None, **config: Any) -> RayExecutor:
        made.append(
            RayExecutor(RayConfig(kind="ray", **{"cpus": 0.5, **config}), factory, threads=threads, shard=shard)
        )
        return made[-1]

    yield build
    for executor in made:
        executor.close()


def drain(executor: Any, count: int) -> dict[int, Outcome]:
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + 60
    while len(outcomes) < count and time.monotonic() < deadline:
        outcomes += executor.wait(2.0)
    assert len(outcomes) == count
    return {outcome.candidate: outcome for outcome in outcomes}


def test_workers_are_other_processes_with_their_threads(make: Any, toys: Any) -> None:
    info = make(toys(), threads=3).start()
    assert info.versions["pid"] != str(os.getpid())
    assert info.versions["threads"] == "3"


def test_a_dead_worker_costs_one_attempt_and_is_replaced(make: Any, toys: Any, job_of: JobOf, tmp_path: Path) -> None:
    executor = make(toys({1: "die"}, trail=tmp_path / "trail"), workers=1)
    executor.start()
    for number in range(3):
        executor.submit(job_of(number))
    outcomes = drain(executor, 3)
    lost = outcomes[1]
    assert isinstance(lost, Failed)
    assert (lost.stage, lost.retry) == ("worker", True)
    assert lost.reason.startswith("the worker process died: ")
    assert isinstance(outcomes[2], Scored)
    executor.submit(job_of(1, attempt=2))
    assert isinstance(drain(executor, 1)[1], Scored)
    pids = [line.split()[0] for line in (tmp_path / "trail").read_text().splitlines()]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_worker_killed_from_outside_in_mid_job(make: Any, toys: Any, job_of: JobOf, tmp_path: Path) -> None:
    trail = tmp_path / "trail"
    executor = make(toys({0: "hang"}, trail=trail), workers=2)
    executor.start()
    executor.submit(job_of(0))
    executor.submit(job_of(1))
    drain(executor, 1)
    (pid,) = [line.split()[0] for line in trail.read_text().splitlines() if line.endswith(" 0")]
    os.kill(int(pid), signal.SIGKILL)
    lost = drain(executor, 1)[0]
    assert isinstance(lost, Failed)
    assert lost.stage == "worker"
    deadline = time.monotonic() + 30
    while executor.capacity < 2 and time.monotonic() < deadline:
        executor.wait(1.0)
        time.sleep(0.1)
    assert executor.capacity == 2


def test_a_job_that_takes_too_long_is_stopped(make: Any, toys: Any, job_of: JobOf) -> None:
    executor = make(toys({0: "hang"}), workers=1, job_timeout_seconds=1.0)
    executor.start()
    executor.submit(job_of(0))
    executor.submit(job_of(1))
    outcomes = drain(executor, 2)
    late = outcomes[0]
    assert isinstance(late, Failed)
    assert (late.stage, late.retry) == ("timeout", True)
    assert "longer than 1 s" in late.reason
    assert isinstance(outcomes[1], Scored)


def test_workers_share_a_long_job(make: Any, toys: Any, job_of: JobOf, tmp_path: Path) -> None:
    executor = make(toys(trail=tmp_path / "trail", seconds=0.3), workers=2, shard=1)
    executor.start()
    _wait_for(lambda: executor.capacity == 2, executor)
    job = replace(job_of(4), items=ItemSet.of({"t": tuple(range(8))}))
    executor.submit(job)
    outcome = drain(executor, 1)[4]
    assert isinstance(outcome, Scored)
    assert [(r.items, r.values) for r in outcome.responses] == [(tuple(range(8)), tuple(4.0 + i for i in range(8)))]
    pids = [line.split()[0] for line in (tmp_path / "trail").read_text().splitlines()]
    assert len(pids) == 8
    assert len(set(pids)) == 2


def test_a_death_in_a_shared_job_is_one_failure_and_the_job_can_be_done_again(
    make: Any, toys: Any, job_of: JobOf
) -> None:
    executor = make(toys({4: "die"}), workers=2, shard=1)
    executor.start()
    executor.submit(job_of(4))
    executor.submit(job_of(5))
    outcomes = drain(executor, 2)
    assert isinstance(outcomes[4], Failed)
    assert isinstance(outcomes[5], Scored)
    executor.submit(job_of(4, attempt=2))
    assert isinstance(drain(executor, 1)[4], Scored)
    assert executor.wait(0.2) == []


def test_workers_that_cannot_be_replaced_end_the_run(make: Any, toys: Any, job_of: JobOf, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    executor = make(toys({0: "die"}, flag=flag, how="error"), workers=1)
    executor.start()
    flag.touch()
    executor.submit(job_of(0))
    assert isinstance(drain(executor, 1)[0], Failed)
    executor.submit(job_of(1))
    with pytest.raises(RunError, match="RuntimeError: no such device"):
        drain(executor, 1)


def test_a_worker_that_does_not_come_up_ends_the_run(make: Any, toys: Any) -> None:
    with pytest.raises(RunError, match=r"expected a worker within 1 s .*; got none; each asks for 0.5 CPU and 0 GPU"):
        make(toys(how="hang"), workers=1, start_timeout_seconds=1.0).start()


def test_demands_that_nothing_meets_end_the_run_with_what_there_is(make: Any, toys: Any) -> None:
    with pytest.raises(RunError, match=r"each asks for 0.5 CPU and 1 GPU, the cluster has 2 CPU and 0 GPU"):
        make(toys(), workers=1, gpus=1, start_timeout_seconds=1.0).start()


def test_room_that_is_lost_after_a_broken_start_is_missed(make: Any, toys: Any) -> None:
    executor = make(toys(), workers=1, gpus=1, start_timeout_seconds=1.0)
    executor._crew._failures = 1  # an earlier one broke, where there was room
    with pytest.raises(RunError, match=r"expected a worker within 1 s .*; got none; each asks for"):
        executor.start()


def test_a_job_that_waited_at_a_dead_worker_is_not_charged(make: Any, toys: Any, job_of: JobOf) -> None:
    executor = make(toys({20: "die"}), workers=1)
    executor.start()
    for number in range(6):  # until it is known that jobs are short
        executor.submit(job_of(number))
        drain(executor, 1)
    assert executor.capacity == 2
    for number in (20, 21, 22):
        executor.submit(job_of(number))
    outcomes = drain(executor, 3)
    assert isinstance(outcomes[20], Failed)
    assert isinstance(outcomes[21], Scored)
    assert isinstance(outcomes[22], Scored)


def test_workers_join_when_the_cluster_has_room(make: Any, toys: Any) -> None:
    import ray

    other = ray.remote(num_cpus=1)(type("Other", (), {})).remote()
    executor = make(toys(), workers=WorkerRange(min=1, max=4))
    executor.start()
    _wait_for(lambda: executor.capacity == 2, executor)
    time.sleep(1.0)
    executor.wait(0.1)
    assert executor.capacity == 2
    ray.kill(other)
    _wait_for(lambda: executor.capacity == 4, executor)


def _wait_for(condition: Callable[[], bool], executor: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        executor.wait(0.5)
        time.sleep(0.1)
    assert condition()


def test_fewer_workers_than_the_fewest_end_the_run(make: Any, toys: Any) -> None:
    import ray

    other = ray.remote(num_cpus=1)(type("Other", (), {})).remote()
    executor = make(toys(), workers=WorkerRange(min=3, max=3), cpus=0.6, start_timeout_seconds=3.0)
    with pytest.raises(
        RunError, match=r"each asks for 0.6 CPU and 0 GPU, the cluster has 2 CPU and 0 GPU, of which free"
    ):
        _start_and_wait(executor)
    ray.kill(other)


def _start_and_wait(executor: Any) -> None:
    executor.start()
    _wait_for(lambda: False, executor)


def test_a_worker_that_finds_other_models_is_refused(make: Any, toys: Any, job_of: JobOf, tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    class Differing:
        def __call__(self) -> Any:
            return self

        def info(self) -> Any:
            found = replace(toys()().info(), pool_digest="other" if flag.exists() else "d")
            flag.touch()
            return found

        def run(self, job: Job) -> Any:
            return toys()().run(job)

    executor = make(Differing(), workers=1)
    executor.start()
    os.kill(int(executor._crew.info.versions["pid"]), signal.SIGKILL)
    executor.submit(job_of(0))
    assert isinstance(drain(executor, 1)[0], Failed)
    executor.submit(job_of(0, attempt=2))
    with pytest.raises(RunError, match="expected what the other workers found; got pool_digest 'other' instead of 'd'"):
        drain(executor, 1)


def test_other_versions_on_a_node_are_refused_with_the_list(make: Any, toys: Any) -> None:
    executor = make(toys(), workers=1)
    executor._crew._versions = executor._crew._versions | {"torch": "0.1", "numpy": "0.2"}
    with pytest.raises(RunError, match=r"same versions on the driver .*got numpy: 0.2 here, .*; torch: 0.1 here, "):
        executor.start()


def test_more_workers_than_this_machine_holds_are_refused_at_once(make: Any, toys: Any) -> None:
    with pytest.raises(ConfigError, match="1 workers of 4000 CPUs each do not fit this machine's"):
        make(toys(), workers=1, cpus=4000).start()


def test_an_error_on_the_way_back_costs_the_attempt_only(make: Any, toys: Any, job_of: JobOf) -> None:
    """A factory whose workers answer with something that cannot be sent."""

    class Mute:
        def info(self) -> Any:
            return toys()().info()

        def run(self, job: Job) -> Any:
            return threading.Lock() if job.candidate == 0 else toys()().run(job)

    executor = make(Mute, workers=1)
    executor.start()
    executor.submit(job_of(0))
    executor.submit(job_of(1))
    outcomes = drain(executor, 2)
    assert isinstance(outcomes[0], Failed)
    assert outcomes[0].stage == "worker"
    assert isinstance(outcomes[1], Scored)


_DRIVER = """
import os, signal, time
import psutil
from evomerge.config import RayConfig, WorkerRange
from evomerge.outcome import ItemSet, Job, Scored
from evomerge.recipe import uniform
from evomerge.workers import WorkerInfo
from evomerge.workers.ray_executor import RayExecutor

class Sleeper:
    def info(self):
        return WorkerInfo(sizes={}, versions={"pid": str(os.getpid())})
    def run(self, job):
        time.sleep(2)
        return Scored(candidate=job.candidate, phase=job.phase, round=job.round, responses=(), worker=str(os.getpid()))

signals = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: signals.append(number))
executor = RayExecutor(RayConfig(kind="ray", workers=1), Sleeper)
executor.start()
executor.submit(Job(candidate=0, phase="search", recipe=uniform(("a",), layers=1, dtype="float32"),
                    items=ItemSet.of({"t": (0,)})))
executor.wait(0.5)
os.killpg(0, signal.SIGINT)
os.kill(os.getpid(), signal.SIGTERM)
(outcome,) = executor.wait(30)
print([number.name for number in map(signal.Signals, signals)], type(outcome).__name__)
def ours_now():
    return [child.pid for child in psutil.Process().children(recursive=True)]
print([c.laddr.ip for pid in ours_now() for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"
       and c.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1", "::1")])
folder = executor._cluster._folder
executor.close()
print(os.path.exists(folder), ours_now())
executor = RayExecutor(RayConfig(kind="ray", workers=1), Sleeper)
pid = executor.start().versions['pid']
print(executor._cluster._folder, pid, flush=True)
time.sleep(60)
"""


def test_a_cluster_of_our_own_obeys_the_driver_and_nobody_else(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group: the driver notes it, the workers go on, so that a drain can end them."""
    script = tmp_path / "driver.py"
    script.write_text(_DRIVER)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        assert driver.stdout is not None
        lines = [driver.stdout.readline().strip() for _ in range(4)]
        driver.kill()
    folder, pid = lines.pop().split()
    assert lines == ["['SIGINT', 'SIGTERM'] Scored", "[]", "False []"]
    deadline = time.monotonic() + 20
    while psutil.pid_exists(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(int(pid)), "a killed driver takes its workers along"
    shutil.rmtree(folder)


def test_a_cluster_of_another_version_is_no_silent_one() -> None:
    from evomerge.workers.ray_cluster import _no_answer

    error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.49.0\n    Python: 3.12.1")
    assert "got other versions (Version mismatch: The cluster was started with: Ray: 2.49.0 Python: 3.12.1)" in str(
        _no_answer("head:6379", error)
    )


def test_a_disk_without_room_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.workers.ray_cluster import RayCluster

    def refuse(**_: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(DiskError, match="expected room for Ray's sockets; got No space left on device"):
        RayCluster(RayConfig(kind="ray"))._start()


def test_an_address_that_does_not_answer() -> None:
    code = (
        "from evomerge.config import RayConfig; from evomerge.workers.ray_executor import RayExecutor\n"
        "from evomerge.errors import RunError\n"
        "try: RayExecutor(RayConfig(kind='ray', address='127.0.0.1:1'), int).start()\n"
        "except RunError as error: print(error)\n"
        "from ray._private.ray_constants import NUM_REDIS_GET_RETRIES; print(NUM_REDIS_GET_RETRIES, 'try')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "expected a Ray cluster at '127.0.0.1:1'; got no answer" in done.stdout
    assert done.stdout.endswith("\n1 try\n"), "of Ray's 20, which take a quarter of an hour"
