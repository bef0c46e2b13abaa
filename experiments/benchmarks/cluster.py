"""A cluster's figures: a run in chaos, many workers, large stores, a second worker. `make bench NAME=cluster`.

The full run takes about half an hour, most of it the chaos run and the quickstart's four runs; `QUICK=1` under a
minute, without the quickstart. Throughputs are ratios within one run, so a busy machine does not matter much.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cluster_chaos
import cluster_scale
from table import QUICK, Row, conclude

SPEED_UP = 1.7
REPEATS = 2


def _quickstart(workers: int, folder: Path) -> float:
    """Seconds of the search and confirmation, as the run itself accounts them: without the start of Ray and workers."""
    import json

    from evomerge.runs import RunStore

    command = [sys.executable, "-m", "evomerge", "run", "quickstart", "--out", str(folder)]
    command += ["--set", f"executor={{kind: ray, workers: {workers}}}"]
    subprocess.run(command, check=True, capture_output=True)
    with RunStore.read(folder) as store:
        return float(json.loads(store.meta("driver") or "{}")["wall_seconds"])


def speed_up_rows() -> Iterator[Row]:
    """The quickstart with one worker and with two, taking turns; the better of each."""
    if QUICK:
        yield Row(name="quickstart, 2 workers against 1", target=f">= {SPEED_UP}", measured="not in QUICK", met=None)
        return
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="evomerge-") as place:
        for repeat in range(REPEATS):
            for workers, found in seconds.items():
                found.append(_quickstart(workers, Path(place) / f"{workers}-{repeat}"))
    ratio = min(seconds[1]) / min(seconds[2])
    yield Row(
        name="quickstart, 2 workers against 1",
        target=f">= {SPEED_UP}",
        measured=f"{ratio:.2f} ({min(seconds[1]):.0f} s against {min(seconds[2]):.0f} s)",
        met=ratio >= SPEED_UP,
    )


PARTS = (cluster_chaos.rows, cluster_scale.scale_rows, cluster_scale.store_rows, speed_up_rows)
"""Functions that give rows, in the order in which they are run; engines add theirs here."""


if __name__ == "__main__":
    began = time.perf_counter()
    found = [row for part in PARTS for row in part()]
    print(f"{time.perf_counter() - began:.0f} s")
    conclude("Cluster", found)
