"""The report of a large run: how big, how soon written, how soon on the screen; and what everyday commands cost.

5,000 made-up candidates, 3 objectives, 200 coefficients each, in a real run folder. `make bench NAME=report`.
"""

from __future__ import annotations

import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

from chromium import chromium, find_chromium
from newcomer import tutorial
from table import QUICK, Row, conclude

from evomerge.outcome import Failed, ItemSet, Job, Phase, Responses, Scored
from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform
from evomerge.reports import summarize, write_report
from evomerge.rng import stream
from evomerge.runs import Candidate, RunStore
from evomerge.runs.schema import connect

CANDIDATES = 5000
POPULATION = 100
FINALISTS = 64
LAYERS = 49
EXPERTS = ("math", "code")
GOALS = {"gsm": "max", "humaneval": "max", "toxicity": "min"}
ITEMS: dict[Phase, range] = {"search": range(40), "confirm": range(40, 440)}
REPEATS = 3


def genes(number: int) -> list[float]:
    """200 coefficients that settle as the search goes on."""
    draw = stream(0, "benchmark genes", number)
    spread = 0.5 * (1.0 - 0.8 * number / CANDIDATES)
    values: list[float] = (0.5 + spread * (draw.random(4 * LAYERS + 4) - 0.5)).tolist()
    return values


def recipe(values: list[float]) -> Recipe:
    """Attention and MLP of every layer, embeddings and head, for each of two experts."""
    pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
    attention, mlp, embed, head = pairs[:LAYERS], pairs[LAYERS : 2 * LAYERS], pairs[-2:-1], pairs[-1:]
    weight = Field.of({"attention": attention, "mlp": mlp, "norm": attention, "embed": embed, "head": head})
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=EXPERTS,
        parameters=(("lambda", Field.constant([1.0], LAYERS)), ("weight", weight)),
        dtype="bfloat16",
    )


def candidates() -> list[Candidate]:
    """Four anchors and the search's."""
    models: dict[str, list[str]] = {"base": ["base"], **{name: [name] for name in EXPERTS}, "uniform": list(EXPERTS)}
    anchors = [
        Candidate(
            id=i, kind="anchor", label=label, generation=-1, slot=i, genome=None,
            recipe=uniform(names, layers=LAYERS, dtype="bfloat16"),
        )
        for i, (label, names) in enumerate(models.items())
    ]  # fmt: skip
    return [*anchors, *map(proposal, range(len(anchors), CANDIDATES))]


def proposal(number: int) -> Candidate:
    """One of the search's candidates."""
    values = genes(number)
    generation, slot = divmod(number, POPULATION)
    return Candidate(
        id=number, kind="search", generation=generation, slot=slot, genome=tuple(values), recipe=recipe(values)
    )


def answers(candidate: Candidate, phase: Phase) -> tuple[Responses, ...]:
    """Right and wrong answers, more right ones later; each objective has ups and downs of its own."""
    items = tuple(ITEMS[phase])
    found = []
    for index, (task, goal) in enumerate(GOALS.items()):
        skill = 0.35 + 0.3 * candidate.id / CANDIDATES + 0.2 * math.sin(candidate.id * 0.37 + 2 * index)
        right = stream(1, "benchmark answers", candidate.id, index, phase).random(len(items)) < skill
        values = tuple(float(r if goal == "max" else not r) for r in right)
        found.append(Responses(task=task, metric="acc", items=items, values=values))
    return tuple(found)


def experiment() -> dict[str, Any]:
    """The resolved experiment."""
    return {
        "version": 1,
        "name": "five-thousand",
        "pool": {"base": "/models/base", "experts": {name: f"/models/{name}" for name in EXPERTS}},
        "space": {"kind": "parameter", "operator": {"name": "task_arithmetic"}, "genes": {"weight": {}}},
        "fitness": {
            "tasks": ["/tasks"],
            "objectives": [{"name": name, "task": name, "goal": goal} for name, goal in GOALS.items()],
            "items": {"search": len(ITEMS["search"]), "confirm": len(ITEMS["confirm"])},
        },
        "algorithm": {"kind": "nsga2", "population": POPULATION},
        "budget": {"evaluations": CANDIDATES},
    }


@contextmanager
def without_flushing() -> Iterator[None]:
    """Run folders that are only read again by this process need no disk barriers."""

    def quick(path: Path) -> Any:
        database = connect(path)
        database.execute("PRAGMA synchronous = OFF")
        return database

    with patch("evomerge.runs.store.connect", quick):
        yield


def write_run(folder: Path) -> None:
    """A finished run: every candidate scored but one in 50, the last ones confirmed."""
    manifest = {
        "experiment": experiment(), "pool_digest": "0" * 16, "genes": [f"weight.{i}" for i in range(4 * LAYERS + 4)],
        "versions": {"evomerge": "0.1.0"}, "created_at": time.time(),
    }  # fmt: skip
    with without_flushing(), RunStore.create(folder, manifest) as store:
        everyone = candidates()
        store.add_candidates(everyone)
        for candidate in everyone:
            settle(store, candidate, "search")
        for candidate in [*everyone[:4], *everyone[-FINALISTS:]]:
            settle(store, candidate, "confirm")
        store.set_meta("state", "finished")


def settle(store: RunStore, candidate: Candidate, phase: Phase) -> None:
    """Score a candidate, or let it fail."""
    found = answers(candidate, phase)
    items = ItemSet.of({response.task: response.items for response in found})
    job = Job(candidate=candidate.id, phase=phase, recipe=candidate.recipe, items=items)
    worker = f"worker {candidate.id % 8}"
    store.start_attempt(job)
    if phase == "search" and candidate.id % 50 == 49:
        failed = Failed(
            candidate=candidate.id, phase=phase, stage="evaluate", reason="NaN in the logits", worker=worker
        )
        store.record(failed, job=job, final=True)
    else:
        seconds = {"materialize": 0.4, "forward": 20.0, "evaluate": 1.0}
        scored = Scored(candidate=candidate.id, phase=phase, responses=found, seconds=seconds, worker=worker)
        store.record(scored, job=job)


def build(folder: Path, page: Path) -> float:
    """CPU seconds from the run folder to the page; nothing waits for the network or another process."""
    began = time.process_time()
    with RunStore.read(folder) as store:
        write_report(summarize(store), page)
    return time.process_time() - began


def paints(page: Path) -> tuple[float, float] | None:
    """Milliseconds to the first contentful paint and to the end of loading, medians; None without a browser."""
    program = find_chromium()
    if program is None:
        return None
    times = []
    with chromium(program) as browser:
        for _ in range(REPEATS):
            tab = browser.page()
            tab.open(page)
            times.append(
                tab.evaluate(
                    "[performance.getEntriesByName('first-contentful-paint')[0].startTime,"
                    "performance.getEntriesByType('navigation')[0].loadEventEnd]"
                )
            )
    first, loaded = map(statistics.median, zip(*times, strict=True))
    return first, loaded


def cpu_seconds(*arguments: str) -> float:
    """User and system seconds of one evomerge command, the best of some."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "evomerge", *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(REPEATS))


def painted(page: Path) -> list[Row]:
    """What a browser takes; it works on the wall clock, so there is no target."""
    found = paints(page)
    names = ("first contentful paint", "end of loading")
    told = ["no chromium found"] * 2 if found is None else [f"{value:.0f} ms" for value in found]
    return [Row(name=name, target="-", measured=text, met=None) for name, text in zip(names, told, strict=True)]


def main() -> None:
    """Measure, and say so."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, page = Path(scratch) / "run", Path(scratch) / "report.html"
        write_run(folder)
        seconds = min(build(folder, page) for _ in range(1 if QUICK else REPEATS))
        size = page.stat().st_size / 1e6
        shown = painted(page)
        experiments = Path(__file__).resolve().parents[1]
        light = {
            "evomerge --help": cpu_seconds("--help"),
            "evomerge check": cpu_seconds("check", str(experiments / "quickstart.yaml")),
        }
    rows = [
        Row(name=f"report of {CANDIDATES} candidates, size", target="< 8 MB", measured=f"{size:.2f} MB", met=size < 8),
        Row(name="run folder to page, CPU", target="< 10 s", measured=f"{seconds:.1f} s", met=seconds < 10),
        *shown,
        *(
            Row(name=f"{name}, CPU", target="< 1 s", measured=f"{spent:.2f} s", met=spent < 1)
            for name, spent in light.items()
        ),
    ]
    conclude("report", chain(rows, tutorial()))


if __name__ == "__main__":
    main()
