"""The main job's figures: time, gain over every parent, kill and resume, overhead, parity with mergekit.

Run it with `make bench NAME=quickstart`; `QUICK=1` is shorter. Every figure comes from the command line that a user
types, in processes of their own.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from table import QUICK, Row, conclude

from evomerge.fitness import MEAN
from evomerge.reports import Summary, summarize
from evomerge.runs import RunStore

EVOMERGE = [sys.executable, "-m", "evomerge"]
KILLS = 2 if QUICK else 25
SEEDS = (0,) if QUICK else (0, 1, 2)
SMALL = ["--executor", "serial", "--set", "budget.evaluations=65", "--set", "fitness.confirm.shortlist=4"]


def evomerge(*arguments: str) -> str:
    """Run one command; its output.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run([*EVOMERGE, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"evomerge {' '.join(arguments)} exited with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def summary_of(folder: Path) -> Summary:
    """What a run found."""
    with RunStore.read(folder) as store:
        return summarize(store)


def gains(folder: Path, seed: int) -> Row:
    """The knee against every parent, on confirmation items."""
    summary = summary_of(folder)
    if summary.confirmation is None:
        return Row(name=f"seed {seed}: gain over each parent", target="> 0", measured="nothing confirmed", met=False)
    knee, parents = summary.confirmation.knee, {entry.id for entry in summary.parents}
    gained = [g for g in summary.confirmation.gains if g.candidate == knee and g.anchor in parents and g.of == MEAN]
    if not gained:
        return Row(name=f"seed {seed}: gain over each parent", target="> 0", measured="the knee is a parent", met=False)
    worst = min((gain.measure for gain in gained), key=lambda measure: measure.low)
    text = f"least certain {worst.mean:+.3f} [{worst.low:+.3f}, {worst.high:+.3f}]"
    return Row(name=f"seed {seed}: knee over each parent, mean", target="low > 0", measured=text, met=worst.low > 0)


def overhead(folder: Path) -> Row:
    """Everything in a candidate's life that is not the model's forward pass, as a share."""
    with RunStore.read(folder) as store:
        results = [result for result in store.results("search") if result.cached_from is None]
        driver = json.loads(store.meta("driver") or "{}")["busy_seconds"]
        everything = len(store.results())
    stages: dict[str, float] = {}
    for result in results:
        for stage, seconds in result.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    bookkeeping = driver * len(results) / everything
    rest = sum(seconds for stage, seconds in stages.items() if stage != "forward") + bookkeeping
    share = rest / (rest + stages["forward"])
    per = {**stages, "driver": bookkeeping}
    text = ", ".join(f"{stage} {1000 * seconds / len(results):.1f} ms" for stage, seconds in per.items())
    text = f"{share:.1%} ({text})"
    return Row(name="share that is not forward pass", target="<= 20 %", measured=text, met=share <= 0.2)


def help_cost() -> Row:
    """CPU seconds of `evomerge --help`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    evomerge("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Row(name="evomerge --help, CPU", target="< 1 s", measured=f"{seconds:.2f} s", met=seconds < 1)


def results_in(folder: Path) -> dict[tuple[int, str], Any]:
    """Recorded results by candidate and phase; empty while there is no run."""
    if not RunStore.exists(folder):
        return {}
    with RunStore.read(folder) as store:
        return {(result.candidate, result.phase): result.responses for result in store.results()}


def killed_run(folder: Path, extra: list[str], kills: int) -> tuple[int, int]:
    """Kill -9 the driver at random moments, resume each time, then let it finish.

    Returns:
        Kills done, and results that were there before a kill and not, or differently, after it.
    """
    random.seed(7)
    lost = done = 0
    before: dict[tuple[int, str], Any] = {}
    while done < kills:
        process = subprocess.Popen(
            [*EVOMERGE, "run", "quickstart", "--out", str(folder), *extra],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = len(before) + random.randint(0, 4 if QUICK else 14)
        while process.poll() is None and len(results_in(folder)) < until:
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.3))
        if process.poll() is not None:
            break  # it finished before its moment came
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done += 1
        now = results_in(folder)
        lost += sum(now.get(key) != value for key, value in before.items())
        before = now
    evomerge("run", "quickstart", "--out", str(folder), *extra)
    final = results_in(folder)
    return done, lost + sum(final.get(key) != value for key, value in before.items())


def kill_and_resume(place: Path) -> list[Row]:
    """Killed and resumed runs against an undisturbed one, on both executors."""
    rows = []
    for kind, kills in (("serial", KILLS),) if QUICK else (("ray", KILLS), ("serial", 8)):
        extra = SMALL if kind == "serial" else []
        whole, killed = place / f"{kind}-whole", place / f"{kind}-killed"
        evomerge("run", "quickstart", "--out", str(whole), *extra)
        done, lost = killed_run(killed, extra, kills)
        with RunStore.read(whole) as a, RunStore.read(killed) as b:
            same = a.archive() == b.archive()
            double = len(b.results()) - len({(result.candidate, result.phase) for result in b.results()})
        text = f"{done} kills, {lost} lost, {double} double, archive {'identical' if same else 'DIFFERS'}"
        ok = same and not lost and not double and done >= kills
        target = f"{kills} kills, 0, 0, identical"
        rows.append(Row(name=f"kill -9 and resume ({kind})", target=target, measured=text, met=ok))
    return rows


def parity() -> Row:
    """Exported mergekit YAML of linear, task arithmetic and TIES, replayed by mergekit itself."""
    name, target = "mergekit replays linear, task arithmetic, TIES", "<= 1 ulp in fp32"
    python = Path(".venv-mergekit/bin/python")
    if not python.exists():
        text = "not measured: run `make mergekit-env`"
        return Row(name=name, target=target, measured=text, met=None if QUICK else False)
    from mergekit_parity import measure

    rows = [row for row in measure(python) if row.recipe.startswith(("linear", "task_arithmetic", "ties"))]
    worst = max(row.worst_ulp for row in rows)
    text = f"{worst:g} ulp over {len(rows)} recipes of {rows[0].elements} elements"
    return Row(name=name, target=target, measured=text, met=worst <= 1)


def main() -> None:
    """Measure everything and print the table."""
    place = Path(tempfile.mkdtemp(prefix="evomerge-bench-"))
    rows = [help_cost()]
    try:
        for seed in SEEDS:
            began = time.perf_counter()
            folder = place / f"seed{seed}"
            evomerge("run", "quickstart", "--out", str(folder), "--set", f"seed={seed}", *(SMALL if QUICK else []))
            seconds = time.perf_counter() - began
            if seed == 0:
                name, text = "the main job, wall, after installation", f"{seconds:.0f} s"
                rows += [Row(name=name, target="<= 180 s", measured=text, met=seconds <= 180), overhead(folder)]
            rows.append(gains(folder, seed))
        rows += kill_and_resume(place)
        rows.append(parity())
    finally:
        shutil.rmtree(place)
    conclude("quickstart", rows)


if __name__ == "__main__":
    main()
