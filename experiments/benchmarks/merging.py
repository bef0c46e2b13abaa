"""What a candidate costs: CPU seconds per merge, against the memory traffic that no merge can avoid, and mergekit.

Run it with `make bench NAME=merging`; `QUICK=1` is shorter. SmolLM2-135M (or random weights in its layout), base and
three synthetic experts, bf16, one thread. A candidate is lowered and written into live tensors; its coefficients are
new, so nothing but facts about the pool is reused. QUICK measures a smaller model and scales seconds to 135M weights.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from synthetic_models import LARGE, QUICK_LAYOUT, SMOLLM2, write_expert, write_random
from table import QUICK, Row, conclude

from evomerge.merge import write_merge
from evomerge.merging.compiled import COMPILER, LEAST, Compiler
from evomerge.merging.executor import execute_into
from evomerge.merging.keep_rules import Trim
from evomerge.merging.operands import operands_of
from evomerge.merging.operators import lower
from evomerge.merging.plan import TensorPlan, Term, Vote
from evomerge.merging.pool import ModelPool
from evomerge.recipe import OPERATORS, Field, Preset, Recipe, options_of
from evomerge.recipe.mergekit_yaml import to_mergekit

ROUNDS, REPEATS = (1, 2) if QUICK else (3, 3)
REAL_BASE = Path.home() / ".cache" / "evomerge" / "smollm2" / "base"
MERGEKIT = Path(".venv-mergekit/bin/python")
EXPERTS = ("one", "two", "three")
SMOLLM2_WEIGHTS = 134_515_008


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One operator under one preset.

    Attributes:
        target: CPU seconds per candidate; None for none.
        moving: densities differ from candidate to candidate.
        replayed: mergekit has it.
    """

    operator: str
    target: float | None
    preset: Preset = "mergekit"
    sources: int = 3
    moving: bool = False
    replayed: bool = True

    @property
    def name(self) -> str:
        """Operator and what is special."""
        changes = ", changing density" if self.moving else ", fixed density"
        density = changes if self.operator in ("ties", "dare_ties", "della") else ""
        return self.operator + density + (", paper" if self.preset == "paper" else "")


CASES = (
    Case(operator="linear", target=0.16),
    Case(operator="task_arithmetic", target=0.18),
    Case(operator="ties", target=0.28),
    Case(operator="ties", target=0.28, moving=True, replayed=False),
    Case(operator="ties", target=0.28, preset="paper", moving=True, replayed=False),
    Case(operator="dare_ties", target=0.35),
    Case(operator="dare_ties", target=0.35, moving=True, replayed=False),
    Case(operator="dare_ties", target=0.35, preset="paper", moving=True, replayed=False),
    Case(operator="breadcrumbs", target=0.35, moving=True),
    Case(operator="della", target=0.50),
    Case(operator="della", target=0.50, moving=True, replayed=False),
    Case(operator="della", target=0.50, preset="paper", moving=True, replayed=False),
    Case(operator="slerp", target=0.18, sources=1),
    Case(operator="nuslerp", target=0.18, sources=2),
    Case(operator="multislerp", target=0.18),
    Case(operator="karcher", target=0.18),
    Case(operator="model_stock", target=0.18),
    Case(operator="metagpt", target=0.18, replayed=False),
)


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder that is gone afterwards, caches of evomerge within."""
    place = Path(tempfile.mkdtemp(prefix="evomerge-bench-"))
    os.environ["EVOMERGE_CACHE"] = str(place / "cache")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / "inductor")
    try:
        yield place
    finally:
        shutil.rmtree(place)


def make_pool(place: Path) -> ModelPool:
    """Base and experts: the real base where it is at hand."""
    if REAL_BASE.is_dir() and not QUICK:
        shutil.copytree(REAL_BASE, place / "base")
    else:
        write_random(place / "base", QUICK_LAYOUT if QUICK else SMOLLM2)
    for number, name in enumerate(EXPERTS, 1):
        write_expert(place / name, place / "base", number)
    return ModelPool.open(place / "base", {name: place / name for name in EXPERTS})


def recipe_of(case: Case, number: int, layers: int) -> Recipe:
    """One candidate; number 0 is the one that facts are prepared with."""
    table, sources = OPERATORS[case.operator], EXPERTS[: case.sources]
    rows = {
        "weight": [0.4 + number / 100, 0.3, 0.3 - number / 100],
        "density": [0.5 + (number / 50 if case.moving else 0.0)] * 3,
        "gamma": [0.01] * 3,
        "epsilon": [0.1] * 3,
        "lambda": [1.0 - number / 100 if case.operator in ("model_stock", "metagpt") else 1.0],
        "t": [0.4 + number / 100],
    }
    if case.operator == "karcher":
        rows["weight"] = [1.0] * 3  # all that mergekit can express
    width = {name: case.sources if table.parameters[name].scope == "source" else 1 for name in table.parameters}
    return Recipe(
        operator=case.operator,
        options=options_of(table, case.preset),
        base="base" if table.needs_base else None,
        sources=sources,
        parameters=tuple((name, Field.constant(rows[name][: width[name]], layers)) for name in sorted(width)),
        mask_seed=1,  # all candidates of a run share it
        dtype="bfloat16",
    )


def cpu_seconds(work: Callable[[], object]) -> float:
    """What one call takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def copy_speed() -> float:
    """Bytes read and written per CPU second by a plain copy of a model's worth of bf16."""
    source, target = torch.ones(2, SMOLLM2_WEIGHTS, dtype=torch.bfloat16)
    return 4 * len(source) / min(cpu_seconds(lambda: target.copy_(source)) for _ in range(7))


def seconds_per_candidate(
    cases: Sequence[Case], pool: ModelPool, live: dict[str, torch.Tensor], compiler: Compiler
) -> dict[str, float]:
    """Medians over candidates by case, after two of each that prepare and compile.

    Cases take turns, a few candidates each after one that is not counted, so that a minute in which other programs have
    the memory is not one case's alone.
    """

    def candidate(case: Case, number: int) -> float:
        recipe = recipe_of(case, number, pool.layers)
        return cpu_seconds(lambda: execute_into(lower(recipe, pool), pool, live, compiler=compiler))

    found: dict[str, list[float]] = {case.name: [] for case in cases}
    for case in cases:
        for number in range(2):  # the second that moves densities makes tables of what masks keep, once a run
            candidate(case, number)
    for first in range(2, 2 + ROUNDS * (REPEATS + 1), REPEATS + 1):
        for case in cases:
            _, *counted = [candidate(case, number) for number in range(first, first + REPEATS + 1)]
            found[case.name] += counted
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def mergekit_seconds(pool: ModelPool, place: Path) -> dict[str, float]:
    """The same by mergekit, in its own environment and one process; empty if it is not there."""
    cases = [case for case in CASES if case.replayed]
    if not MERGEKIT.exists():
        return {}
    folders = {name: str(pool.folder(name)) for name in pool.names}
    files = [place / f"{number}.yaml" for number in range(len(cases))]
    for case, file in zip(cases, files, strict=True):
        file.write_text(to_mergekit(recipe_of(case, 1, pool.layers), folders, pool.specs))
    program, repeats = Path(__file__).with_name("mergekit_seconds.py"), "2" if QUICK else "5"
    command: list[str | Path] = [MERGEKIT, program, repeats, *files]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {case.name: statistics.median(seconds) for case, seconds in zip(cases, found, strict=True)}


def candidate_rows(pool: ModelPool, place: Path) -> Iterator[Row]:
    """Every operator beside its target, the floor and mergekit."""
    weights = sum(torch.Size(spec.shape).numel() for spec in pool.specs)
    live = {spec.name: torch.empty(spec.shape, dtype=torch.bfloat16) for spec in pool.specs}
    speed, theirs = copy_speed(), mergekit_seconds(pool, place)
    COMPILER.pays_from = 0
    yield Row(name="copy speed", target="-", measured=f"{speed / 1e9:.1f} GB/s", met=None)
    found = seconds_per_candidate(CASES, pool, live, COMPILER)
    for case in CASES:
        scale = SMOLLM2_WEIGHTS / weights
        ours = scale * found[case.name]
        reads = len(recipe_of(case, 0, pool.layers).models)
        floor = 2 * (reads + 1) * SMOLLM2_WEIGHTS / speed
        text = f"{ours:.3f} s, {ours / floor:.1f} x floor {floor:.3f} s"
        if case.name in theirs:
            text += f"; mergekit {scale * theirs[case.name]:.2f} s, {scale * theirs[case.name] / ours:.0f} x"
        met = None if case.target is None else ours <= case.target
        yield Row(name=case.name, target=f"<= {case.target} s", measured=text, met=met)
    if not theirs:
        text, met = "not measured: run `make mergekit-env`", None if QUICK else False
        yield Row(name="mergekit in the same run", target="-", measured=text, met=met)


def fallback_rows(pool: ModelPool) -> list[Row]:
    """Without a compiler, and what the compiler itself takes in a process, its cache on disk empty and full."""
    weights = sum(torch.Size(spec.shape).numel() for spec in pool.specs)
    live = {spec.name: torch.empty(spec.shape, dtype=torch.bfloat16) for spec in pool.specs}
    case = next(case for case in CASES if case.operator == "ties")
    found = seconds_per_candidate([case], pool, live, Compiler(pays_from=math.inf))
    seconds = found[case.name] * SMOLLM2_WEIGHTS / weights
    cold, warm = (in_a_process_of_its_own(compile_ties) for _ in range(2))
    return [
        Row(name="ties without a compiler", target="<= 2.0 s", measured=f"{seconds:.2f} s", met=seconds <= 2),
        Row(name="compile ties in a new process", target="-", measured=f"{cold:.1f} s, again {warm:.1f} s", met=None),
    ]


def compile_ties() -> float:
    """CPU seconds of this process and its children, imports included."""
    torch.set_num_threads(1)
    before = sum(os.times()[:4])
    terms = tuple(Term(source=name, weight=1.0, keep=Trim(threshold=0.1, last_tie=9)) for name in EXPERTS)
    kernel = Vote(base="base", terms=terms, gains=(1.0,) * 3, shares=(1.0,) * 3, zero="plus", scale=1.0)
    plan = TensorPlan(name="w", shape=(LEAST,), dtype="bfloat16", kernel=kernel)
    inputs = {name: torch.ones(LEAST, dtype=torch.bfloat16) for name in ("base", *EXPERTS)}
    if not Compiler(pays_from=0).run(operands_of(plan, inputs, {}), torch.empty(LEAST, dtype=torch.bfloat16)):
        raise RuntimeError("expected a compiler; got none")
    return sum(os.times()[:4]) - before


def in_a_process_of_its_own(work: Callable[[], float]) -> float:
    """What a function returns there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work).result()


def prepare(pool: ModelPool, cache: Path) -> float:
    """CPU seconds of the first lowering of every kind in a process, scaled to 135M weights."""
    torch.set_num_threads(1)
    os.environ["EVOMERGE_CACHE"] = str(cache)
    weights = sum(torch.Size(spec.shape).numel() for spec in pool.specs)
    cases = [case for case in CASES if case.operator in ("ties", "model_stock") and case.preset == "mergekit"]
    seconds = sum(cpu_seconds(partial(lower, recipe_of(case, 0, pool.layers), pool)) for case in cases)
    return seconds * SMOLLM2_WEIGHTS / weights


def prepare_rows(pool: ModelPool, place: Path) -> list[Row]:
    """From nothing, and with what another process has kept on disk: medians of processes of their own."""
    caches = [place / f"cache-{number}" for number in range(1 if QUICK else 3)]
    first, again = (
        statistics.median([in_a_process_of_its_own(partial(prepare, pool, cache)) for cache in caches])
        for _ in range(2)
    )
    name = "prepare once per pool: order statistics, scalar products"
    text = f"{again:.2f} s, {first / again:.0f} x faster"
    return [
        Row(name=name, target="<= 6 s", measured=f"{first:.2f} s", met=first <= 6),
        Row(name="prepare in a second process", target="<= 1 s", measured=text, met=again <= 1),
    ]


def scheduling_rows(pool: ModelPool) -> list[Row]:
    """Lower a recipe for 8,000 tensors and tell which of them changed."""
    some = [spec for spec in pool.specs if spec.layer is not None]
    specs = tuple(replace(some[i % len(some)], name=f"{i}.{some[i % len(some)].name}") for i in range(8000))
    many = replace(pool, specs=specs)
    before, after = (recipe_of(CASES[1], number, pool.layers) for number in (1, 2))
    previous = lower(before, many)
    seconds = statistics.median(cpu_seconds(lambda: lower(after, many).changed(previous)) for _ in range(5))
    return [Row(name="schedule 8,000 tensors", target="<= 0.1 s", measured=f"{seconds:.3f} s", met=seconds <= 0.1)]


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What one merge to a folder takes.

    Attributes:
        opening: wall seconds of the first opening of its models.
        writing: wall seconds of merging and writing.
        peak: most private bytes.
    """

    opening: float
    writing: float
    peak: int


def export(place: Path) -> Export:
    """Write one merge; to be called in a process of its own."""
    torch.set_num_threads(1)
    peaks, done = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peaks.append(anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    pool = ModelPool.open(place / "base", {name: place / name for name in EXPERTS[:2]})
    opened = time.perf_counter()
    recipe = recipe_of(Case(operator="task_arithmetic", target=None, sources=2), 0, pool.layers)
    write_merge(recipe, pool, place / "merged")
    written = time.perf_counter()
    done.set()
    watcher.join()
    return Export(opening=opened - began, writing=written - opened, peak=max(peaks))


def plain_transfer(place: Path) -> float:
    """Wall seconds of reading every byte of the inputs and writing as many as one of them, flushed to the disk."""
    buffer = bytearray(1 << 22)
    began = time.perf_counter()
    with (place / "plain").open("wb") as out:
        for name in ("base", *EXPERTS[:2]):
            for file in sorted((place / name).glob("*.safetensors")):
                with file.open("rb", buffering=0) as stream:
                    while size := stream.readinto(buffer):
                        if name == "base":
                            out.write(memoryview(buffer)[:size])
        out.flush()
        os.fsync(out.fileno())
    return time.perf_counter() - began


def export_rows(place: Path) -> list[Row]:
    """Export of large models, files written a moment before."""
    write_random(place / "base", QUICK_LAYOUT if QUICK else LARGE)
    for number, name in enumerate(EXPERTS[:2], 1):
        write_expert(place / name, place / "base", number)
    size = sum(file.stat().st_size for file in (place / "base").iterdir())
    plain = plain_transfer(place)
    (place / "plain").unlink()  # neither has more free memory than the other
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        found = process.submit(export, place).result()
    name, all_of_it = f"export of {size / 1e9:.1f} GB, base and two experts", found.opening + found.writing
    text = f"{found.writing:.1f} s, {found.writing / plain:.2f} x plain reading and writing ({plain:.1f} s)"
    first = f"{all_of_it:.1f} s, {all_of_it / plain:.2f} x plain"
    met = None if QUICK else found.writing <= 1.5 * plain
    return [
        Row(name=f"{name}: wall", target="<= 1.5 x plain", measured=text, met=met),
        Row(name="the same and the models' first opening", target="-", measured=first, met=None),
        Row(name=f"{name}: memory", target="< 1 GB", measured=f"{found.peak / 1e9:.2f} GB", met=found.peak < 1e9),
    ]


def every_row(place: Path) -> Iterator[Row]:
    """Everything, in the order in which it is measured."""
    pool = make_pool(place / "small")
    yield from prepare_rows(pool, place)
    yield from scheduling_rows(pool)
    yield from candidate_rows(pool, place)
    yield from fallback_rows(pool)
    yield from export_rows(place / "large")


def main() -> None:
    """Measure everything and print the table."""
    torch.set_num_threads(1)
    with temporary() as place:
        conclude("merging, CPU seconds per candidate of 135M weights", every_row(place))


if __name__ == "__main__":
    main()
