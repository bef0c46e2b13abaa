"""A run whose workers, nodes and driver are killed, stuck and lost all the time, beside one that is left in peace.

Three simulated nodes of one CPU (`ray.cluster_utils.Cluster`), real processes, real deaths; workers sleep instead of
computing. Running out of memory is a SIGKILL in mid-job, which is what a kernel does. The head's health checks are set
to half a second, so that a vanished node is noticed in 1.5 s instead of Ray's 12.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from synthetic_workers import ORDERS
from table import QUICK, Row

from evomerge.runs import RunStore

__all__ = ["rows"]

EVALUATIONS, POPULATION = (28, 12) if QUICK else (196, 48)
SECONDS = 0.8 if QUICK else 7.0
TIMEOUT = 4 * SECONDS
"""Patience with a job: 3.5 sigma of their times, and what a user who knows them would write."""
WORKERS = 3
EVERY = 3.0 if QUICK else 28.0
TARGET = 0.85
_HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 500,
}
MISCHIEF = ("worker", "hang", "node", "worker", "oom", "driver", "lose", "worker", "no start")


@contextmanager
def _cluster() -> Iterator[Any]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    own = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(own)  # of the nodes' workers
    Path("/tmp/ray").mkdir(exist_ok=True)
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def _add(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What became of a run.

    Attributes:
        archive: canonical bytes.
        done: jobs with a result.
        alive: seconds in which a worker was up, over all workers; one that is stuck counts until it is replaced.
        stuck: the part of them in which it was.
        seconds: wall time.
        mischief: how often what was done to it.
        statuses: how attempts ended.
        sound: every result once, numbered without gaps.
        failures: of candidates that were given up, each with its attempts.
    """

    archive: bytes
    done: int
    alive: float
    stuck: float
    seconds: float
    mischief: Counter[str]
    statuses: Counter[str]
    sound: bool
    failures: tuple[str, ...]


def _command(place: Path, evaluations: int, *rest: object) -> list[str]:
    program = Path(__file__).with_name("synthetic_workers.py")
    return [sys.executable, str(program), *map(str, (place, evaluations, POPULATION, SECONDS, TIMEOUT, *rest))]


class Trail:
    """Follows the workers through what they note down, and the system's list of processes."""

    def __init__(self, file: Path) -> None:
        self._file, self._read = file, 0
        self.up: set[int] = set()
        self.stuck: set[int] = set()
        self.done = 0
        self.alive_seconds = self.stuck_seconds = 0.0
        self._last = time.monotonic()

    def follow(self) -> None:
        """Takes note of who came up, and adds the time since the last call for those that live."""
        with self._file.open() as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        for line in lines:
            pid, _, what = line.split(maxsplit=2)
            if what.startswith("up"):
                self.up.add(int(pid))
            elif what.startswith("stuck"):
                self.stuck.add(int(pid))
            self.done += what.startswith("done")
        self.up = {pid for pid in self.up if _lives(pid)}
        now = time.monotonic()
        self.alive_seconds += len(self.up) * (now - self._last)
        self.stuck_seconds += len(self.up & self.stuck) * (now - self._last)
        self._last = now


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Monkey:
    """Does something bad every few seconds: first each thing once, then at random."""

    def __init__(self, cluster: Any, nodes: list[Any], place: Path, trail: Trail) -> None:
        self._cluster, self._nodes, self._place, self._trail = cluster, nodes, place, trail
        self._draw = random.Random(0)
        self._plan = list(MISCHIEF)
        self.done: Counter[str] = Counter()

    def strike(self, kill_driver: Callable[[], None]) -> None:
        """One bad thing."""
        what = self._plan.pop(0) if self._plan else self._draw.choice(MISCHIEF)
        self.done[what] += 1
        if what in ORDERS:
            (self._place / "orders" / what).touch()
        elif what == "driver":
            kill_driver()
        elif what == "node":
            node = self._nodes.pop(self._draw.randrange(len(self._nodes)))
            self._cluster.remove_node(node, allow_graceful=False)
            self._nodes.append(_add(self._cluster))
        elif victims := sorted(self._trail.up):
            os.kill(self._draw.choice(victims), signal.SIGKILL)


def _run(cluster: Any, nodes: list[Any], place: Path, evaluations: int, *, peace: bool) -> Seen:
    (place / "orders").mkdir(parents=True)
    (place / "trail").touch()
    trail = Trail(place / "trail")
    monkey = Monkey(cluster, nodes, place, trail)
    command, began = _command(place, evaluations, cluster.address), time.monotonic()
    log = (place / "output").open("w")
    driver = subprocess.Popen(command, stdout=log, stderr=log)
    strike_at, struck = time.monotonic() + EVERY, 0
    while True:
        time.sleep(0.1)
        trail.follow()
        if driver.poll() == 0:
            break
        if driver.poll() is not None:
            monkey.done["start of the driver"] += 1
            driver = subprocess.Popen(command, stdout=log, stderr=log)
        # where little has worked, two or three blows to one candidate are held against it (see `evomerge.blame`), so a
        # machine that is too busy to do much between two blows gets fewer of them
        if not peace and time.monotonic() >= strike_at and trail.up and trail.done > struck + WORKERS:
            monkey.strike(driver.kill)
            struck = trail.done
            strike_at = time.monotonic() + EVERY * random.Random(str(monkey.done)).uniform(0.5, 1.5)
    seconds = time.monotonic() - began
    with RunStore.read(place / "run") as store:
        results = store.results()
        keys = [(result.candidate, result.phase, result.round) for result in results]
        return Seen(
            archive=store.archive(),
            done=len(results),
            alive=trail.alive_seconds,
            stuck=trail.stuck_seconds,
            seconds=seconds,
            mischief=monkey.done,
            statuses=Counter(attempt.status for attempt in store.attempts()),
            failures=tuple(_told(store, failure.candidate) for failure in store.failures()),
            sound=len(set(keys)) == len(keys) and [result.seq for result in results] == list(range(len(results))),
        )


def _told(store: RunStore, candidate: int) -> str:
    tries = [attempt for attempt in store.attempts() if attempt.candidate == candidate]
    return f"candidate {candidate}: {', '.join(f'{t.stage or t.status} ({t.reason})' for t in tries)}"


def rows() -> Iterator[Row]:
    """The undisturbed run, the same run in chaos, and how they compare."""
    with tempfile.TemporaryDirectory(prefix="evomerge-") as folder:
        root = Path(folder)
        subprocess.run(_command(root / "serial", EVALUATIONS), check=True)
        with RunStore.read(root / "serial" / "run") as store:
            expected = store.archive()
        with _cluster() as cluster:
            nodes = [_add(cluster) for _ in range(WORKERS)]
            peace = _run(cluster, nodes, root / "peace", 4 + POPULATION, peace=True)
            chaos = _run(cluster, nodes, root / "chaos", EVALUATIONS, peace=False)
    ratio = (chaos.done / chaos.alive) / (peace.done / peace.alive)
    told = ", ".join(f"{count} x {what}" for what, count in chaos.mischief.items())
    name = f"chaos: {chaos.seconds:.0f} s"
    yield Row(name=name, target="some blow", measured=told or "none", met=bool(chaos.mischief))
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(chaos.statuses.items()))
    yield Row(
        name="chaos: no result lost or counted twice",
        target="none",
        measured=f"{chaos.done} results, each once; attempts: {statuses}" if chaos.sound else "not so",
        met=chaos.sound,
    )
    same = chaos.archive == expected
    yield Row(
        name="chaos: archive equals that of the undisturbed run",
        target="equal",
        measured="equal" if same else f"different; given up: {'; '.join(chaos.failures) or 'none'}",
        met=same,
    )
    free = (chaos.done / (chaos.alive - chaos.stuck)) / (peace.done / peace.alive)
    yield Row(
        name="chaos: throughput per surviving worker-second",
        target=f">= {TARGET:.0%}",
        measured=f"{free:.0%} of undisturbed; {ratio:.0%} if stuck workers count as surviving",
        met=free >= TARGET,
    )
