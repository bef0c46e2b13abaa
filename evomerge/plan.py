"""`evomerge plan`: what a run will take, before anything is spent. Needs neither torch nor a benchmark run."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from evomerge.config import Experiment
from evomerge.merging.pool import ModelPool
from evomerge.opening import Lineup
from evomerge.spaces import SearchSpace

__all__ = ["estimate_plan"]

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def _size(amount: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return ""


def estimate_plan(
    experiment: Experiment, pool: ModelPool, lineup: Lineup, space: SearchSpace
) -> Iterator[tuple[str, str]]:
    """Pairs of a quantity and its value, in the order in which people ask."""
    fixed = experiment.anchors
    population = experiment.algorithm.population
    generations = (experiment.budget.evaluations - fixed) // population
    candidates = fixed + generations * population
    tasks = len({objective.task for objective in experiment.fitness.objectives})
    items = experiment.fitness.items
    finalists = fixed + experiment.fitness.confirm.shortlist
    parameters = sum(prod(spec.shape) for spec in pool.specs)
    stored = sum(prod(spec.shape) * _BYTES[spec.dtype] for spec in pool.specs)
    models = len(pool.names)
    workers = getattr(experiment.executor, "workers", 1)
    yield "models", f"{models} x {parameters / 1e6:.1f} M parameters, {lineup.layers} layers, {pool.dtype}"
    yield "genes", f"{len(space.genes)} ({experiment.space.operator.name})"
    yield "candidates", f"{candidates} = {fixed} anchors + {generations} generations of {population}"
    yield "search items", f"{candidates * tasks * items.search:,} ({items.search} for each of {tasks} tasks)"
    yield "confirmation items", f"up to {finalists * tasks * items.confirm:,} ({finalists} candidates at most)"
    yield "workers", f"{workers} ({experiment.executor.kind}), {experiment.engine.kind} on {experiment.engine.device}"
    yield (
        "memory per worker",
        f"{_size(parameters * _BYTES[lineup.dtype])} for the live model, plus activations; "
        f"{_size(stored * models)} of model files are mapped once per node and shared",
    )
    yield "disk", "the run folder only: candidates are never written; each export takes one model"
