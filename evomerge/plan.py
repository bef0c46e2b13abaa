"""`evomerge plan`: what a run will take, before anything is spent. Needs neither torch nor a benchmark run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod

from evomerge.config import Experiment, FitnessConfig, IrtConfig, OpenaiConfig, VllmConfig
from evomerge.engines.candidate_adapters import served_rank
from evomerge.launch import check_memory, most_layers
from evomerge.merging.cache import folder_of
from evomerge.merging.calibrated import CALIBRATION, statistics_bytes
from evomerge.merging.footprint import RESERVE, Memory, footprints, needs_of, size
from evomerge.merging.host import host_memory
from evomerge.merging.lora import is_adapter
from evomerge.merging.pool import ModelPool
from evomerge.merging.variants import VARIANTS, disk_bytes
from evomerge.opening import Lineup
from evomerge.reports.words import duration
from evomerge.spaces import Gene, SearchSpace

__all__ = ["Pace", "estimate_plan"]

_MOST_TOLD = 8
"""Longer lists are cut short."""

_ON_TOP = "a batch's activations and logits come on top"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What a candidate takes of one worker, on the items of the search.

    Attributes:
        tokens: read and written; None if nobody knows.
        source: who says so, in words.
    """

    seconds: float
    tokens: float | None = None
    source: str


def estimate_plan(
    experiment: Experiment, pool: ModelPool, lineup: Lineup, space: SearchSpace, pace: Pace | None = None
) -> Iterator[tuple[str, str]]:
    """Pairs of a quantity and its value, in the order in which people ask.

    Args:
        experiment: what would be run.
        pool: its models.
        lineup: the pool's shape.
        space: the search space over it.
        pace: what a candidate takes; without it nothing is said of time.
    """
    fixed = experiment.anchors
    askable = experiment.algorithm.most([len(gene.choices) for gene in space.genes])
    generations = _generations(experiment, askable)
    candidates = fixed + sum(generations)
    tasks = len({measured.task for measured in experiment.fitness.metrics})
    items = experiment.fitness.items
    finalists = fixed + experiment.fitness.confirm.shortlist
    parameters = sum(prod(spec.shape) for spec in pool.specs)
    stored = sum(file.stat().st_size for file in {file for model in pool.models.values() for file in model.files})
    adapters = sum(is_adapter(pool.folder(name)) for name in pool.names)
    lora = f", and {adapters} LoRA adapters on it" if adapters else ""
    workers = getattr(experiment.executor, "most", 1)
    full = len(pool.names) - adapters
    yield "models", f"{full} x {parameters / 1e6:.1f} M parameters, {lineup.layers} layers, {pool.dtype}{lora}"
    operators = ", ".join(operator.name for operator in experiment.space.operators)
    yield "genes", f"{len(space.genes)} ({operators or experiment.space.kind})"
    yield from _choices(space.genes)
    each = " + ".join(f"{count} generations of {size}" for size, count in Counter(generations).items())
    if (in_flight := experiment.algorithm.in_flight) is not None:
        each = f"{sum(generations)}, {in_flight} of them in work at any time"
    left = experiment.budget.evaluations - candidates
    why = "too few for another generation" if sum(generations) < askable else "as nothing more is asked"
    rest = f"; {left} of the budget are left, {why}" if left > 0 else ""
    yield "candidates", f"{candidates} = {fixed} anchors + {each}{rest}"
    yield "search items", _search_items(experiment.fitness, tasks, fixed, generations)
    yield "confirmation items", f"up to {finalists * tasks * items.confirm:,} ({finalists} candidates at most)"
    yield from _time(experiment, pace, candidates, finalists * items.confirm / items.search)
    yield "workers", f"{workers} ({experiment.executor.kind}), {experiment.engine.kind} on {experiment.engine.device}"
    yield from _memory(experiment, pool, lineup.dtype)
    check_memory(experiment, pool, lineup.dtype)
    yield "shared per node", f"{size(stored)} of model files and what is prepared of them are mapped once"
    served = experiment.engine.serves_adapters
    kept = "of candidates one adapter per worker, while it is asked" if served else "candidates are never written"
    yield "disk", f"the run folder only: {kept}; each export takes one model"
    if "grams" in experiment.space.statistics:
        most = size(statistics_bytes(pool))
        yield "disk for calibration", f"{most} at most, measured once, in {folder_of(CALIBRATION)}"
    if transforms := experiment.space.every_transform:
        most = size(disk_bytes(pool, transforms))
        told = f"at most, mapped like model files: {', '.join(transforms)} of each expert, built once per pool"
        yield "disk for transforms", f"{most} {told}, in {folder_of(VARIANTS)}"


def _time(experiment: Experiment, pace: Pace | None, candidates: int, confirmed: float) -> Iterator[tuple[str, str]]:
    """How long it takes, if workers are never idle; the confirmation as so many candidates of the search."""
    if pace is None:
        yield (
            "time",
            "not known before candidates were scored: --probe scores some here, --seconds takes your own figure",
        )
        return
    workers, gpus = getattr(experiment.executor, "most", 1), getattr(experiment.executor, "gpus", 0.0)
    hours = pace.seconds / 3600
    yield "pace", f"{duration(pace.seconds)} a candidate and worker ({pace.source})"
    yield "candidates per hour", f"{workers / hours:,.0f} with {workers} workers that are never idle and as fast"
    search, confirm = (duration(3600 * hours * count / workers) for count in (candidates, confirmed))
    yield "time", f"{search} of search, up to {confirm} of confirmation; starting up comes on top"
    if gpus:
        yield "GPU-hours", f"up to {hours * gpus * (candidates + confirmed):.2g}"
    if pace.tokens is not None:
        tokens = pace.tokens * candidates
        yield "tokens", f"{tokens:,.0f} of search, up to {pace.tokens * confirmed:,.0f} of confirmation"


def _choices(genes: Sequence[Gene]) -> Iterator[tuple[str, str]]:
    """What is chosen, and from what; genes of one list together, and only as much as a person reads."""
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for gene in genes:
        if gene.choices:
            alike[gene.choices].append(gene.name)
    for choices, names in islice(alike.items(), _MOST_TOLD):
        many = f"{len(choices)} choices: " if len(choices) > _MOST_TOLD else ""
        yield _shortened(names, ", "), many + _shortened(choices, " | ")
    if rest := [name for names in [*alike.values()][_MOST_TOLD:] for name in names]:
        yield _shortened(rest, ", "), "likewise"


def _shortened(words: Sequence[str], between: str) -> str:
    shown = words if len(words) <= _MOST_TOLD else [*words[:2], "...", words[-1]]
    return between.join(shown)


def _generations(experiment: Experiment, most: int) -> list[int]:
    """Candidates of each generation that the budget holds, `most` in all; each by itself if there are none."""
    sizes: list[int] = []
    asked, budget = 0, experiment.budget.evaluations - experiment.anchors
    while 0 < (size := min(experiment.algorithm.step_at(asked), most - asked)) <= budget - asked:
        sizes.append(size)
        asked += size
    return sizes


def _search_items(fitness: FitnessConfig, tasks: int, anchors: int, generations: Sequence[int]) -> str:
    """How many, and of what; at most, where the answers themselves decide."""
    few, estimator = fitness.items.search, fitness.estimator
    if isinstance(estimator, IrtConfig):
        all_ = estimator.universe
        few = min(few, all_)
        promoted = sum(min(estimator.promote, population) for population in generations)
        total = tasks * (anchors * all_ + sum(generations) * few + promoted * (all_ - few))
        told = f"{few} for each of {tasks} tasks; {all_} for anchors and {promoted} promoted candidates"
        return f"at most {total:,} ({told})"
    total = tasks * few * (anchors + sum(generations))
    return f"{'at most ' if fitness.race else ''}{total:,} ({few} for each of {tasks} tasks)"


def _memory(experiment: Experiment, pool: ModelPool, dtype: str) -> Iterator[tuple[str, str]]:
    """What a worker takes of its own, wherever it turns out to run; and whether that can fit here."""
    engine, executor = experiment.engine, experiment.executor
    if isinstance(engine, OpenaiConfig):
        workers = getattr(executor, "most", 1)
        yield "server", f"--max-lora-rank {served_rank(pool)} or more; --max-loras {workers} serves all workers at once"
        return
    if isinstance(engine, VllmConfig):
        yield from _memory_of_vllm(engine, pool, dtype, most_layers(experiment, pool))
        return
    needs = needs_of(pool, dtype, engine.deltas, depth=most_layers(experiment, pool))
    if engine.device != "cpu":
        tiers = footprints(needs, on_device=True)
        wanted = [tier for tier in tiers if engine.residency in ("auto", tier.tier)]
        thumb = f"{size(RESERVE)} of it for a batch's activations and logits, by rule of thumb"
        yield "memory per GPU worker", f"{'; or '.join(map(str, wanted))}; {thumb}"
    if engine.device in ("auto", "cpu"):
        (tier,) = footprints(needs, on_device=False)
        made = f", {size(needs.made)} for weights that adapters or other vocabularies change" if needs.made else ""
        own = f"{size(needs.live)} live model, {size(needs.scratch[0])} scratch{made}; {_ON_TOP}"
        yield "memory per CPU worker", own
        memory = Memory(device=None, host=host_memory(free=False), workers=getattr(executor, "most", 1))
        if getattr(executor, "address", None) is None and not tier.fits(memory):
            yield (
                "too large",
                f"this machine has {size(memory.host)} for {memory.workers} workers; "
                "use fewer workers, a smaller engine.dtype, or a machine with more memory",
            )


def _memory_of_vllm(engine: VllmConfig, pool: ModelPool, dtype: str, layers: int) -> Iterator[tuple[str, str]]:
    """The engine's own share, and what the merges beside it take."""
    if engine.serves_adapters:
        yield "vLLM", f"the base and one adapter of rank {served_rank(pool)} at most; nothing is merged"
        return
    needs = replace(needs_of(pool, dtype, engine.deltas, depth=layers), live=0)
    live = needs_of(pool, dtype, engine.deltas, depth=layers).live
    ranks = engine.tensor_parallel_size
    tiers = [str(tier) for tier in footprints(needs, on_device=True) if engine.residency in ("auto", tier.tier)]
    share = f"{engine.gpu_memory_utilization:.0%} of the worker's share for vLLM"
    yield "vLLM", f"{layers} layers, {size(live / ranks)} of weights{f' on each of {ranks} ranks' if ranks > 1 else ''}"
    yield "memory per GPU", f"{share}; beside it {'; or '.join(tiers)}"
    cache = engine.kv_cache_gib or 1.0
    yield "memory per CPU worker", f"{size(live)} live model, {cache:g} GiB of keys and values; {_ON_TOP}"
