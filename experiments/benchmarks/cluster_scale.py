"""How many workers one driver keeps busy, and how large a run folder may grow.

The driver is the real one (evaluator, SQLite store, fsync and all); the workers are a script on a virtual clock, on
which the driver's own wall time passes too: while it writes, workers that are done wait.
"""

from __future__ import annotations

import heapq
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from synthetic_workers import LINEUP, TASKS, SyntheticWorkers, experiment
from table import QUICK, Row

from evomerge.evaluator import Evaluator
from evomerge.fitting import space_of
from evomerge.opening import open_run
from evomerge.outcome import ItemSet, Job, Outcome
from evomerge.rng import stream
from evomerge.runs import Candidate, RunStore
from evomerge.search import Search
from evomerge.spaces import Genome
from evomerge.stopping import Stop
from evomerge.workers import WorkerInfo
from evomerge.workers.rota import Rota, Round, Share

__all__ = ["scale_rows", "store_rows"]

MEDIAN, SIGMA = 30.0, 0.6
MADE = 3.0
"""Seconds of a job in which the candidate is made."""
SHARD = 3
"""Items of a share, of 24."""
WORKERS = (1, 10, 100) if QUICK else (1, 10, 100, 1000, 4000)
JOBS_EACH = 5 if QUICK else 10
FEWEST_JOBS = 60 if QUICK else 300
RESULTS = 20_000 if QUICK else 1_000_000
UTILISATION, UP_TO = 0.95, 1000
CPU_SECONDS, RESUME_SECONDS, STATUS_SECONDS = 0.002, 60.0, 2.0
ITEMS = ItemSet.of({task: tuple(range(12)) for task in TASKS})


def seconds_of(job: Job) -> float:
    """Log-normal, by candidate; making it included."""
    return MADE + (MEDIAN - MADE) * float(stream(0, "job seconds", job.candidate).lognormal(0.0, SIGMA))


@dataclass
class Scripted:
    """An executor whose workers take virtual time, and whose clock also runs while the driver works.

    Who does what is decided as the Ray executor does it. A candidate that a second worker takes a share of is made once
    more, for `MADE` seconds.

    Attributes:
        workers: that there are.
        shard: most items of a share; None: whole jobs.
        now: virtual seconds.
        spans: begin and end of everything that was done of the search, but for what was made once more.
        own_cpu: CPU seconds that this script took itself, which are no driver's.
    """

    workers: int
    shard: int | None = None
    now: float = 0.0
    spans: list[tuple[float, float]] = field(default_factory=list)
    own_cpu: float = 0.0
    _idle: list[tuple[float, int]] = field(default_factory=list)
    _held: dict[int, Round] = field(default_factory=dict)
    _running: list[tuple[float, int, Share]] = field(default_factory=list)
    _left: float = 0.0

    def __post_init__(self) -> None:
        self._rota = Rota(self.shard)

    @property
    def capacity(self) -> int:
        """One job each: they are long enough that none needs to wait at a worker."""
        return self.workers

    def start(self) -> WorkerInfo:
        """All workers are up at once."""
        self._idle = [(0.0, worker) for worker in range(self.workers)]
        self._left = time.perf_counter()
        info: WorkerInfo = SyntheticWorkers().info()
        return info

    def submit(self, job: Job) -> None:
        """Goes out with the next `wait`."""
        began = time.process_time()
        self._rota.add(job)
        self.own_cpu += time.process_time() - began

    def _assign(self) -> None:
        """Shares for those who are idle; who has been so for longest comes first."""
        while self._idle and (share := self._rota.next(self._held.get(self._idle[0][1]))) is not None:
            since, worker = heapq.heappop(self._idle)
            begin = max(self._virtual(), since)
            first = not share.round.answers and share.round.away == 1
            again = 0.0 if first or self._held.get(worker) is share.round else MADE
            part = len(share.job.items) / len(share.round.job.items)
            end = begin + again + MADE * first + (seconds_of(share.job) - MADE) * part
            self._held[worker] = share.round
            if share.job.phase == "search":
                self.spans.append((begin + again, end))
            heapq.heappush(self._running, (end, worker, share))

    def _virtual(self) -> float:
        return self.now + time.perf_counter() - self._left

    def wait(self, timeout: float) -> list[Outcome]:
        """What is done by now; else moves the clock to the first that will be."""
        began = time.process_time()
        self._assign()
        self.now = self._virtual()
        if self._running:
            self.now = max(self.now, min(self._running[0][0], self.now + 3600.0))
        outcomes: list[Outcome] = []
        while self._running and self._running[0][0] <= self.now:
            end, worker, share = heapq.heappop(self._running)
            heapq.heappush(self._idle, (end, worker))
            outcome = self._rota.done(share, SyntheticWorkers().run(share.job))
            outcomes += [] if outcome is None else [outcome]
        self._left = time.perf_counter()
        self.own_cpu += time.process_time() - began
        return outcomes

    def close(self) -> None:
        """Nothing to do."""


def _candidates(count: int) -> list[Candidate]:
    config = experiment(count + 4, count)
    space = space_of(config, LINEUP)
    draws = stream(0, "genes").random((count, len(space.genes)))
    genomes = [Genome(tuple(row)) for row in draws.tolist()]
    return [
        Candidate(id=i, kind="search", generation=0, slot=i, genome=genome.values, recipe=space.decode(genome))
        for i, genome in enumerate(genomes)
    ]


def _utilisation(spans: list[tuple[float, float]], workers: int, *, steady: bool) -> float:
    """Share of the workers' time in which they worked; `steady`: without the first and the last tenth of the jobs."""
    begins, ends = sorted(begin for begin, _ in spans), sorted(end for _, end in spans)
    edge = len(spans) // 10 if steady else 0
    # the last begin of the window: after it, no more jobs wait
    low, high = (begins[max(edge, workers)], begins[-1]) if steady else (0.0, ends[-1])
    busy = sum(max(0.0, min(end, high) - max(begin, low)) for begin, end in spans)
    return busy / (workers * (high - low))


def _searched(workers: int, jobs: int) -> tuple[Scripted, float]:
    """A whole search without generations, as many candidates in work as workers; as `_settled`."""
    config = experiment(jobs + 4, 20, in_flight=workers)
    executor = Scripted(workers)
    with (
        tempfile.TemporaryDirectory(prefix="evomerge-") as folder,
        open_run(Path(folder) / "run", config, LINEUP, space_of(config, LINEUP)) as store,
    ):
        search = Search(config, LINEUP, store=store, executor=executor, info=executor.start())
        began = time.process_time()
        for _ in search.run(Stop()):
            pass
        return executor, (time.process_time() - began - executor.own_cpu) / jobs


def _settled(workers: int, jobs: int, batch: int, shard: int | None = None) -> tuple[Scripted, float]:
    """Jobs through the real driver, so many at a time; the executor, and the driver's CPU seconds for each."""
    candidates = _candidates(jobs)
    config = experiment(jobs + 4, jobs)
    executor = Scripted(workers, shard)
    with (
        tempfile.TemporaryDirectory(prefix="evomerge-") as folder,
        open_run(Path(folder) / "run", config, LINEUP, space_of(config, LINEUP)) as store,
    ):
        store.add_candidates(candidates)
        work = [Job(candidate=c.id, phase="search", recipe=c.recipe, items=ITEMS) for c in candidates]
        evaluator, stop = Evaluator(store, executor), Stop()
        executor.start()
        began = time.process_time()
        for first in range(0, jobs, batch):
            for _ in evaluator.settle(work[first : first + batch], stop):
                pass
        return executor, (time.process_time() - began - executor.own_cpu) / jobs


def scale_rows() -> Iterator[Row]:
    """Utilisation and the driver's cost, by number of workers."""
    for workers in WORKERS:
        jobs = max(FEWEST_JOBS, (4 if workers > UP_TO else JOBS_EACH) * workers)
        steady, search_cpu = _searched(workers, jobs)
        _, cpu = _settled(workers, jobs, jobs)
        generation = max(20, workers)
        waves, shared = (
            _settled(workers, max(FEWEST_JOBS, 3 * workers), generation, shard)[0] for shard in (None, SHARD)
        )
        share = _utilisation(steady.spans, workers, steady=True)
        barred, helped = (_utilisation(each.spans, workers, steady=False) for each in (waves, shared))
        target = workers <= UP_TO
        yield Row(
            name=f"scale: {workers:,} workers, utilisation in steady state",
            target=f">= {UTILISATION:.0%}" if target else "-",
            measured=f"{share:.1%}",
            met=share >= UTILISATION if target else None,
        )
        yield Row(
            name=f"scale: {workers:,} workers, utilisation with generations of {generation:,}",
            target="-",
            measured=f"{barred:.1%}; {helped:.1%} where idle workers take over shards of an eighth",
            met=None,
        )
        yield Row(
            name=f"scale: {workers:,} workers, driver CPU per result",
            target=f"<= {1000 * CPU_SECONDS:g} ms",
            measured=f"{1000 * cpu:.2f} ms ({1000 * search_cpu:.2f} ms with algorithm, decoding and estimates)",
            met=cpu <= CPU_SECONDS,
        )


def _fill(folder: Path, results: int) -> None:
    """A store of so many results of 24 items, written in bulk; genes and recipes of a thousand candidates recur."""
    config = experiment(results + 4, 1000)
    draws, made = random.Random(0), _candidates(1000)
    some = [SyntheticWorkers().run(Job(candidate=c.id, phase="search", recipe=c.recipe, items=ITEMS)) for c in made]
    with open_run(folder, config, LINEUP, space_of(config, LINEUP)) as store:
        store.add_candidates(made)
        for candidate, outcome in zip(made, some, strict=True):
            job = Job(candidate=candidate.id, phase="search", recipe=candidate.recipe, items=ITEMS)
            store.start_attempt(job)
            store.record(outcome, job=job)
        with store._transaction() as db:
            _repeat(db, "candidate", "id", results)
            _repeat(db, "attempt", "candidate", results)
            _repeat(db, "result", "candidate", results, seq="seq")
            _repeat(db, "response", "candidate", results)
            db.execute("UPDATE candidate SET generation = id / 1000")
            ids = ((f"{draws.getrandbits(64):016x}", i) for i in range(results))
            db.executemany("UPDATE candidate SET digest = ? WHERE id = ?", ids)
        store.set_meta("state", "stopped")


def _repeat(db: object, table: str, key: str, count: int, **more: str) -> None:
    columns = [row["name"] for row in db.execute(f"PRAGMA table_info({table})")]  # type: ignore[attr-defined]
    shifted = {key, *more.values()}
    names = ", ".join(f"{name} + 1000 * n" if name in shifted else name for name in columns)
    db.execute(  # type: ignore[attr-defined]
        f"WITH RECURSIVE times(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM times WHERE n < {count // 1000 - 1}) "
        f"INSERT INTO {table} SELECT {names} FROM times, {table} WHERE {key} < 1000"
    )


def _cpu() -> float:
    """CPU seconds of this process and of its children that ended; a busy machine stretches all others."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _timed(name: str, limit: float, action: Callable[[], object]) -> Row:
    cpu, wall = _cpu(), time.perf_counter()
    action()
    cpu, wall = _cpu() - cpu, time.perf_counter() - wall
    return Row(
        name=f"store of {RESULTS:,} results: {name}",
        target=f"<= {limit:g} s of CPU",
        measured=f"{cpu:.1f} s ({wall:.1f} s of wall time, at a load of {os.getloadavg()[0]:.0f})",
        met=cpu <= limit,
    )


def _resume(folder: Path) -> None:
    """What a driver reads before its first generation."""
    with RunStore.open(folder) as store:
        store.candidates()
        Evaluator(store, None)


def _status(folder: Path) -> None:
    command = [sys.executable, "-m", "evomerge", "status", str(folder)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if not QUICK and f"{RESULTS:,}" not in told:
        raise AssertionError(f"expected a status of {RESULTS:,} results; got {told}")


def store_rows() -> Iterator[Row]:
    """How long a driver takes to know what a large store holds, and a person to see where it stands."""
    with tempfile.TemporaryDirectory(prefix="evomerge-") as place:
        folder = Path(place) / "run"
        _fill(folder, RESULTS)
        yield _timed("resume, all records indexed", RESUME_SECONDS, lambda: _resume(folder))
        yield _timed("evomerge status", STATUS_SECONDS, lambda: _status(folder))
