"""A cluster's figures: a run in chaos, many workers, large stores, a second worker. `make bench NAME=cluster`.

The full run takes about half an hour, most of it the chaos run and the quickstart's ten runs; `QUICK=1` under a
minute, without the quickstart. Throughputs are ratios within one run, so a busy machine does not matter much, save for
the second worker: it is measured first, and its rows tell the load that was there before.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cluster_chaos
import cluster_scale
from synthetic_workers import SyntheticWorkers, drive, experiment
from table import QUICK, Row, conclude

from evomerge.config import RayConfig
from evomerge.runs import RunStore
from evomerge.workers import WorkerInfo
from evomerge.workers.ray_executor import RayExecutor

SPEED_UP = 1.7
LOAD = f"at a load of {os.getloadavg()[0]:.1f} beforehand"
"""What other programs do to the machine. Where they leave it less than two cores, a target is missed for their sake."""
REPEATS = 5
EVALUATIONS, POPULATION, JOB_SECONDS = 244, 20, 0.085
"""The quickstart's (with one anchor less), and the median of its jobs on the machine where it was tried."""
_TABLE = re.compile(r"  (?P<name>.+?) +target (?P<target>.+?) +measured (?P<measured>.+?)  +(?P<mark>met|MISSED|-)")
"""A line as `table.conclude` prints it."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A run.

    Attributes:
        wall: seconds of search and confirmation, as the run accounts them: without the start of Ray and workers.
        busy: share of the workers' time in which they worked.
    """

    wall: float
    busy: float


def _quickstart(workers: int, folder: Path) -> Timed:
    command = [sys.executable, "-m", "evomerge", "run", "quickstart", "--out", str(folder)]
    command += ["--set", f"executor={{kind: ray, workers: {workers}}}"]
    subprocess.run(command, check=True, capture_output=True)
    with RunStore.read(folder) as store:
        wall = float(json.loads(store.meta("driver") or "{}")["wall_seconds"])
        return Timed(wall=wall, busy=sum(sum(r.seconds.values()) for r in store.results()) / wall / workers)


def speed_up_rows() -> Iterator[Row]:
    """The quickstart with one worker and with two, taking turns; the quickest of each.

    Where other programs use the cores, two workers do not get two of them, whatever the executor does; how much of
    their time workers spend working does not depend on it.
    """
    if QUICK:
        yield Row(name="quickstart, 2 workers against 1", target=f">= {SPEED_UP}", measured="not in QUICK", met=None)
        return
    found: dict[int, list[Timed]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="evomerge-") as place:
        for repeat in range(REPEATS):
            for workers, runs in found.items():
                runs.append(_quickstart(workers, Path(place) / f"{workers}-{repeat}"))
    one, two = (min(found[workers], key=lambda run: run.wall) for workers in (1, 2))
    ratio, occupied = one.wall / two.wall, 2 * two.busy / one.busy
    yield Row(
        name="quickstart, 2 workers against 1, wall time",
        target=f">= {SPEED_UP}",
        measured=f"{ratio:.2f} ({one.wall:.0f} s against {two.wall:.0f} s, {LOAD})",
        met=ratio >= SPEED_UP,
    )
    yield Row(
        name="quickstart, 2 workers against 1, time spent working",
        target=f">= {SPEED_UP}",
        measured=f"{occupied:.2f} ({two.busy:.0%} of two workers' time, {one.busy:.0%} of one's)",
        met=occupied >= SPEED_UP,
    )


def _asleep(workers: int, folder: Path) -> float:
    """Wall seconds of a search as long as the quickstart's, once all workers are up."""
    executor = RayExecutor(RayConfig(kind="ray", workers=workers), SyntheticWorkers(seconds=JOB_SECONDS))

    class AllUp:
        """The executor, once it has all of its workers."""

        capacity = property(lambda _: executor.capacity)
        submit, wait, close = executor.submit, executor.wait, executor.close

        def start(self) -> WorkerInfo:
            info = executor.start()
            while executor.capacity < workers:
                executor.wait(1.0)
            return info

    drive(folder, experiment(EVALUATIONS, POPULATION), AllUp())
    with RunStore.read(folder) as store:
        return float(json.loads(store.meta("driver") or "{}")["wall_seconds"])


def schedule_rows() -> Iterator[Row]:
    """The same, but workers sleep as long as they would compute: the executor's own part.

    It needs a core for the driver alone, so a busy machine matters less here than to workers that compute.
    """
    if QUICK:
        return
    own = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(own)  # of the workers
    with tempfile.TemporaryDirectory(prefix="evomerge-") as place:
        one, two = (_asleep(workers, Path(place) / str(workers)) for workers in (1, 2))
    yield Row(
        name="as long a search with workers that sleep, 2 against 1",
        target=f">= {SPEED_UP}",
        measured=f"{one / two:.2f} ({one:.1f} s against {two:.1f} s, {LOAD})",
        met=one / two >= SPEED_UP,
    )


def vllm_rows() -> Iterator[Row]:
    """The vLLM engine's figures, measured in its own environment, whose table is taken over line by line."""
    program = Path(__file__).with_name("vllm_engine.py")
    python = program.parents[2] / os.environ.get("VLLM", ".venv-vllm") / "bin" / "python"
    if QUICK or not python.exists():
        why = "not in QUICK" if QUICK else f"no environment at {python}; run: make vllm-env"
        yield Row(name="vLLM engine", target="-", measured=why, met=None)
        return
    done = subprocess.run([str(python), str(program)], check=False, capture_output=True, text=True)
    lines = [_TABLE.fullmatch(line) for line in done.stdout.splitlines()]
    rows = [
        Row(
            name=f"vLLM: {line['name']}",
            target=line["target"],
            measured=line["measured"],
            met={"met": True, "MISSED": False}.get(line["mark"]),
        )
        for line in lines
        if line
    ]
    fell = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["nothing was printed"]
    yield from rows or [Row(name="vLLM engine", target="-", measured=fell[0], met=False)]


PARTS = (
    speed_up_rows,
    schedule_rows,
    cluster_chaos.rows,
    cluster_scale.scale_rows,
    cluster_scale.store_rows,
    vllm_rows,
)
"""Functions that give rows, in the order in which they are run; engines add theirs here."""


if __name__ == "__main__":
    conclude("Cluster", (row for part in PARTS for row in part()))
