"""The live vLLM engine's figures: exchanging weights against restarting, the same answers, and no growth of memory.

Run it with `make bench NAME=vllm_engine` after `make smollm2`; `QUICK=1` is shorter. SmolLM2-135M and two experts in
float32 on the CPU: rounding to bfloat16 would decide near-ties by the order of sums, which differs between engines.
Answers are compared with a fresh engine on the exported checkpoint.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil
from table import QUICK, Row, conclude

from evomerge.config import FitnessConfig, PoolConfig, TransformersConfig, VllmConfig, load_fitness
from evomerge.engines import EvalRunner, TransformersEngine
from evomerge.engines.items import build_items
from evomerge.engines.lm_tasks import load_tasks
from evomerge.engines.vllm_engine import VllmEngine
from evomerge.engines.vllm_process import start, stop
from evomerge.engines.vllm_worker import Opening
from evomerge.merge import write_merge
from evomerge.merging.configured import configured_pool
from evomerge.outcome import ItemSet
from evomerge.recipe import OPERATORS, Field, Hop, Recipe, options_of, uniform

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool

MODELS = Path("~/.cache/evomerge/smollm2").expanduser()
EXPERTS = ("arith", "sortwords")
CONFIG = VllmConfig(kind="vllm", dtype="float32", max_model_len=512, batch_size=32, kv_cache_gib=0.5)
PROMPTS, TOKENS = 20, 24
SWAPS = 20 if QUICK else 200
WARM = 5 if QUICK else 20
ITEMS = 12 if QUICK else 60
EXTRA = 4
NEAR_TIE = 1e-3


def merge(layers: int, weights: Mapping[str, float], last: Mapping[str, float] | None = None) -> Recipe:
    """Task arithmetic; with other weights in the last layer's attention, if given."""

    def rows(chosen: Mapping[str, float]) -> list[float]:
        return [chosen[name] for name in EXPERTS]

    field = Field.constant(rows(weights), layers)
    if last is not None:
        table = {role: [list(row) for row in values] for role, values in field.by_role()}
        table["attention"][-1] = rows(last)
        field = Field.of(table)
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=EXPERTS,
        parameters=(("lambda", Field.constant([1.0], layers)), ("weight", field)),
        dtype="float32",
    )


def recipes_of(layers: int) -> dict[str, tuple[Recipe, ...]]:
    """By case, recipes to be loaded one after another; the last one's answers are compared."""
    one = merge(layers, {"arith": 0.6, "sortwords": 0.5})
    part = merge(layers, {"arith": 0.6, "sortwords": 0.5}, {"arith": 0.1, "sortwords": 0.9})
    path = [Hop(layer=t) for t in range(layers)]
    path[10:12] = [
        Hop(source="arith", layer=10, scale=1.1),
        Hop(layer=10, scale=0.9),
        Hop(source="sortwords", layer=12),
    ]
    return {
        "full swap, tied embeddings changed": (uniform(("base",), layers=layers, dtype="float32"), one),
        "partial swap (attention of one layer)": (one, part),
        "routed path, one layer more": (one, replace(part, path=tuple(path))),
        "routed path, six layers fewer": (replace(part, path=tuple(path)), replace(one, path=tuple(path[:-7]))),
    }


def written(llm: Any, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Greedy tokens."""
    from vllm import SamplingParams

    greedy = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    answers = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], greedy, use_tqdm=False)
    return [tuple(answer.outputs[0].token_ids) for answer in answers]


def fresh(recipe: Recipe, pool: ModelPool, prompts: Sequence[Sequence[int]]) -> tuple[list[tuple[int, ...]], float]:
    """The same of an engine on the exported checkpoint, in a process of its own; and the seconds until it was up."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_merge(recipe, pool, folder)
        started = time.perf_counter()
        llm = start(folder, CONFIG, dtype="float32", share=1.0, dummy=False, apart=True)
        seconds = time.perf_counter() - started
        try:
            return written(llm, prompts), seconds
        finally:
            stop(llm)


def compare(engine: VllmEngine, prompts: Sequence[Sequence[int]]) -> tuple[list[Row], float]:
    """A row for each case; and what starting an engine takes, median seconds."""
    rows, starts = [], []
    for name, recipes in [*recipes_of(engine.pool.layers).items()][:: 2 if QUICK else 1]:
        for recipe in recipes:
            share = engine.load(recipe).rewritten_share
        live = written(engine.llm, prompts)
        expected, seconds = fresh(recipes[-1], engine.pool, prompts)
        starts.append(seconds)
        equal = sum(a == b for a, b in zip(live, expected, strict=True))
        measured = f"{equal}/{len(prompts)}, {share:.0%} rewritten"
        rows.append(Row(name=name, target=f"{PROMPTS}/{PROMPTS} texts", measured=measured, met=equal == PROMPTS))
    return rows, statistics.median(starts)


def swap(engine: VllmEngine, restart: float) -> Iterator[Row]:
    """Seconds of exchanging all weights, and memory over many times."""
    process, seconds, before = psutil.Process(), [], 0.0
    for number in range(WARM + SWAPS):
        recipe = merge(engine.pool.layers, {"arith": 0.3 + number / 1000, "sortwords": 0.4})
        began = time.perf_counter()
        engine._write(recipe, exact=True)
        seconds.append(time.perf_counter() - began)
        if number == WARM - 1:
            before = process.memory_info().rss
    taken = statistics.median(seconds[WARM:])
    ratio, growth = restart / taken, process.memory_info().rss / before - 1
    told = f"{ratio:.0f} ({taken:.2f} s against {restart:.1f} s)"
    yield Row(name="restart / swap with prefix reset", target=">= 20", measured=told, met=ratio >= 20)
    yield Row(name=f"memory over {SWAPS} swaps", target="<= +2 %", measured=f"{growth:+.2%}", met=growth <= 0.02)


def judge(engine: VllmEngine, source: PoolConfig, fitness: FitnessConfig) -> Iterator[Row]:
    """lm-eval tasks on vLLM and on transformers, item by item."""
    other = TransformersEngine(
        configured_pool(source), TransformersConfig(device="cpu", dtype="float32", batch_size=16)
    )
    recipe = merge(engine.pool.layers, {"arith": 0.5, "sortwords": 0.5})
    chosen, found = None, []
    for live in (engine, other):
        live.load(recipe)
        runner = EvalRunner(live, fitness, 0)
        chosen = ItemSet.of({name: tuple(range(min(ITEMS, size))) for name, size in runner.sizes().items()})
        found.append(runner.score(chosen)[0])
    margins, furthest = likelihoods(engine, other, fitness)
    differing = [
        (one.task, one.metric, item, margins.get((one.task, item)))
        for one, two in zip(*found, strict=True)
        for item, a, b in zip(one.items, one.values, two.values, strict=True)
        if a != b
    ]
    for task, metric, item, margin in differing:
        print(f"  differs: {task} item {item} ({metric}), margin {margin}")
    count = sum(len(one.items) for one in found[0])
    near = all(margin is not None and margin < NEAR_TIE for *_, margin in differing)
    told = f"{len(differing)} of {count} differ"
    yield Row(name="decisions on vLLM and transformers", target="only near-ties differ", measured=told, met=near)
    yield Row(name="log-likelihoods, largest difference", target="-", measured=f"{furthest:.1e} nats", met=None)


def likelihoods(
    engine: VllmEngine, other: TransformersEngine, fitness: FitnessConfig
) -> tuple[dict[tuple[str, int], float], float]:
    """How far the best choice of each item is ahead of the next, by task and item; and how far the engines differ."""
    backends = [live.backend(chat_template=False) for live in (engine, other)]
    margins, furthest = {}, 0.0
    for task in load_tasks(fitness, 0):
        items = build_items(task, backends[0].lm, chat_template=False)[:ITEMS]
        pairs = [pair for item in items for pair in item.pairs]
        found, expected = (backend.scoring(pairs)() for backend in backends)
        furthest = max([furthest, *(abs(a - b) for (a, _), (b, _) in zip(found, expected, strict=True))])
        scores = iter(expected)
        for number, item in enumerate(items):
            best = sorted((next(scores)[0] for _ in item.pairs), reverse=True)
            if len(best) > 1:
                margins[task.name, number] = best[0] - best[1]
    return margins, furthest


def prompts_of(engine: VllmEngine, fitness: FitnessConfig) -> list[list[int]]:
    """Prompts of all tasks in turn, as tokens."""
    lm = engine.backend(chat_template=False).lm
    tasks = [build_items(task, lm, chat_template=False)[:PROMPTS] for task in load_tasks(fitness, 0)]
    return [list(item.pairs[0][0]) for row in zip(*tasks, strict=True) for item in row][:PROMPTS]


def main() -> None:
    """Print the figures."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if not MODELS.is_dir():
        sys.exit(f"{MODELS} is missing; make it with: make smollm2")
    source = PoolConfig(base=MODELS / "base", experts={name: MODELS / name for name in EXPERTS})
    pool = configured_pool(source)
    began = time.perf_counter()
    engine = VllmEngine(pool, Opening(pool=source, engine=CONFIG), depth=pool.layers + EXTRA)
    up = time.perf_counter() - began
    fitness = load_fitness("smollm2")
    prompts = prompts_of(engine, fitness)
    rows, restart = compare(engine, prompts)
    rows += swap(engine, restart)
    rows += judge(engine, source, fitness)
    rows.append(Row(name="live engine up, first check included", target="-", measured=f"{up:.0f} s", met=None))
    conclude("vLLM engine", rows)


if __name__ == "__main__":
    main()
