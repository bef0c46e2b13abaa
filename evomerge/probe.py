"""How long a candidate takes: a few are made and scored on this machine, and forgotten. Needs torch, unlike a plan."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from evomerge.config import Experiment
from evomerge.errors import RunError
from evomerge.fitness import split_items
from evomerge.launch import worker_spec
from evomerge.merging.pool import ModelPool
from evomerge.opening import Lineup, anchors
from evomerge.outcome import Failed, Job, Scored
from evomerge.plan import Pace
from evomerge.rng import stream
from evomerge.spaces import Genome, SearchSpace
from evomerge.workers.candidate import MergeWorker

__all__ = ["probe"]

_MEASURED = 2
"""Candidates whose time counts; one more goes before them, so that nobody pays for what is loaded once."""


def probe(experiment: Experiment, pool: ModelPool, lineup: Lineup, space: SearchSpace, log: Path) -> Pace:
    """Score candidates of a space as one worker of the search would, and take the time.

    Args:
        experiment: tasks, engine and items per candidate are taken as they stand there.
        pool: the models.
        lineup: the pool's shape.
        space: random recipes are drawn from it.
        log: folder for the worker's noise.

    Raises:
        RunError: a candidate failed.
        EvomergeError: the worker cannot start.
    """
    worker = MergeWorker(worker_spec(experiment, pool, log))
    info = worker.info()
    items = split_items(info.sizes, experiment.fitness.items, experiment.seed, info.duplicates).draw(0)
    draws = stream(experiment.seed, "probe").random((_MEASURED, len(space.genes)))
    recipes = [anchors(lineup)["uniform"], *(space.decode(Genome(tuple(row))) for row in draws.tolist())]
    jobs = [Job(candidate=i, phase="search", recipe=recipe, items=items) for i, recipe in enumerate(recipes)]
    scored = [_scored(worker, job) for job in jobs][1:]
    return Pace(
        seconds=fmean(sum(outcome.seconds.values()) for outcome in scored),
        tokens=fmean(sum(outcome.tokens.values()) for outcome in scored),
        source=f"measured here on {_MEASURED} random candidates",
    )


def _scored(worker: MergeWorker, job: Job) -> Scored:
    outcome = worker.run(job)
    if isinstance(outcome, Failed):
        raise RunError(
            f"the probe expected candidates that can be scored; one failed to {outcome.stage}: {outcome.reason}"
        )
    return outcome
