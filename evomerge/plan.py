"""`evomerge plan`: what a run will take, before anything is spent. Needs neither torch nor a benchmark run."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from evomerge.config import Experiment, FitnessConfig, IrtConfig
from evomerge.merging.cache import folder_of
from evomerge.merging.calibrated import CALIBRATION, statistics_bytes
from evomerge.merging.footprint import RESERVE, Memory, footprints, host_memory, needs_of, size
from evomerge.merging.lora import is_adapter
from evomerge.merging.pool import ModelPool
from evomerge.merging.variants import VARIANTS, disk_bytes
from evomerge.opening import Lineup
from evomerge.spaces import SearchSpace

__all__ = ["estimate_plan"]


def estimate_plan(
    experiment: Experiment, pool: ModelPool, lineup: Lineup, space: SearchSpace
) -> Iterator[tuple[str, str]]:
    """Pairs of a quantity and its value, in the order in which people ask."""
    fixed = experiment.anchors
    population = experiment.algorithm.population
    generations = (experiment.budget.evaluations - fixed) // population
    candidates = fixed + generations * population
    tasks = len({measured.task for measured in experiment.fitness.metrics})
    items = experiment.fitness.items
    finalists = fixed + experiment.fitness.confirm.shortlist
    parameters = sum(prod(spec.shape) for spec in pool.specs)
    stored = sum(file.stat().st_size for file in {file for model in pool.models.values() for file in model.files})
    adapters = sum(is_adapter(pool.folder(name)) for name in pool.names)
    lora = f", and {adapters} LoRA adapters on it" if adapters else ""
    workers = getattr(experiment.executor, "workers", 1)
    full = len(pool.names) - adapters
    yield "models", f"{full} x {parameters / 1e6:.1f} M parameters, {lineup.layers} layers, {pool.dtype}{lora}"
    yield "genes", f"{len(space.genes)} ({experiment.space.operator.name})"
    for gene in space.genes:
        if gene.choices:
            yield gene.name, " | ".join(gene.choices)
    yield "candidates", f"{candidates} = {fixed} anchors + {generations} generations of {population}"
    yield "search items", _search_items(experiment.fitness, tasks, fixed, generations, population)
    yield "confirmation items", f"up to {finalists * tasks * items.confirm:,} ({finalists} candidates at most)"
    yield "workers", f"{workers} ({experiment.executor.kind}), {experiment.engine.kind} on {experiment.engine.device}"
    yield from _memory(experiment, pool, lineup.dtype)
    yield "shared per node", f"{size(stored)} of model files and what is prepared of them are mapped once"
    yield "disk", "the run folder only: candidates are never written; each export takes one model"
    if "grams" in experiment.space.statistics:
        most = size(statistics_bytes(pool))
        yield "disk for calibration", f"{most} at most, measured once, in {folder_of(CALIBRATION)}"
    if transforms := experiment.space.every_transform:
        most = size(disk_bytes(pool, transforms))
        told = f"at most, mapped like model files: {', '.join(transforms)} of each expert, built once per pool"
        yield "disk for transforms", f"{most} {told}, in {folder_of(VARIANTS)}"


def _search_items(fitness: FitnessConfig, tasks: int, anchors: int, generations: int, population: int) -> str:
    """How many, and of what; at most, where the answers themselves decide."""
    few, estimator = fitness.items.search, fitness.estimator
    if isinstance(estimator, IrtConfig):
        all_ = estimator.universe
        few, promoted = min(few, all_), min(estimator.promote, population)
        total = tasks * (anchors * all_ + generations * (population * few + promoted * (all_ - few)))
        told = f"{few} for each of {tasks} tasks; {all_} for anchors and {promoted} promoted candidates a generation"
        return f"at most {total:,} ({told})"
    total = tasks * few * (anchors + generations * population)
    return f"{'at most ' if fitness.race else ''}{total:,} ({few} for each of {tasks} tasks)"


def _memory(experiment: Experiment, pool: ModelPool, dtype: str) -> Iterator[tuple[str, str]]:
    """What a worker takes of its own, wherever it turns out to run; and whether that can fit here."""
    engine, executor = experiment.engine, experiment.executor
    needs = needs_of(pool, dtype, engine.deltas)
    if engine.device != "cpu":
        tiers = footprints(needs, on_device=True)
        wanted = [tier for tier in tiers if engine.residency in ("auto", tier.tier)]
        thumb = f"{size(RESERVE)} of it for a batch's activations and logits, by rule of thumb"
        yield "memory per GPU worker", f"{'; or '.join(map(str, wanted))}; {thumb}"
    if engine.device in ("auto", "cpu"):
        (tier,) = footprints(needs, on_device=False)
        made = f", {size(needs.made)} for weights that adapters or other vocabularies change" if needs.made else ""
        own = f"{size(needs.live)} live model, {size(needs.scratch[0])} scratch{made}; activations"
        yield "memory per CPU worker", own
        memory = Memory(device=None, host=host_memory(free=False), workers=getattr(executor, "workers", 1))
        if getattr(executor, "address", None) is None and not tier.fits(memory):
            yield (
                "too large",
                f"this machine has {size(memory.host)} for {memory.workers} workers; "
                "use fewer workers, a smaller engine.dtype, or a machine with more memory",
            )
