"""Every whole-layer path through the quickstart family, scored once on every item: a truth to hold searches to.

Depth j of a path takes layer j of one of the four models, so there are 256. Answers are kept in a folder, and computed
again only where the models have changed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evomerge.config import Experiment, load_experiment
from evomerge.fitting import space_of
from evomerge.outcome import ItemSet, Job, Scored
from evomerge.pools import lineup_of, open_pool
from evomerge.recipe import Hop
from evomerge.spaces.routing import RoutingSpace
from evomerge.workers import WorkerSpec
from evomerge.workers.candidate import MergeWorker

__all__ = ["Choice", "Truth", "choice_of", "opened", "truth_of"]

Choice = tuple[str | None, ...]
"""Whose layer runs at each depth; None for the base."""

Truth = Mapping[Choice, NDArray[np.float64]]
"""`[tasks, items]` by path: 1 for an item that is answered exactly, else 0."""


def opened() -> tuple[Experiment, RoutingSpace]:
    """The shipped experiment and its space."""
    experiment = load_experiment("quickstart_routing")
    space = space_of(experiment, lineup_of(experiment, open_pool(experiment)))
    if not isinstance(space, RoutingSpace):
        raise TypeError(f"expected a routing space in quickstart_routing.yaml; got {space}")
    return experiment, space


def choice_of(path: tuple[Hop, ...]) -> Choice:
    """An aligned path as the models it visits."""
    return tuple(hop.source for hop in path)


def truth_of(experiment: Experiment, space: RoutingSpace, items: int) -> Truth:
    """Answers of all paths to the first items of every task, from `EVOMERGE_SCRATCH` (else the temporary folder)."""
    folder = Path(os.environ.get("EVOMERGE_SCRATCH", tempfile.gettempdir())) / "evomerge-whole-layers"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_digest(experiment)}-{items}.npz"
    choices = list(product(space.stock.sources, repeat=space.stock.layers))
    if not file.exists():
        np.savez_compressed(file, answers=_answers(experiment, space, choices, items))
    with np.load(file, allow_pickle=False) as kept:
        return dict(zip(choices, kept["answers"].astype(np.float64), strict=True))


def _digest(experiment: Experiment) -> str:
    """Of the models' weights."""
    folders = [experiment.pool.base, *experiment.pool.folders.values()]
    weights = b"".join((folder / "model.safetensors").read_bytes() for folder in folders)
    return hashlib.blake2b(weights, digest_size=8).hexdigest()


def _answers(experiment: Experiment, space: RoutingSpace, choices: list[Choice], items: int) -> NDArray[np.int8]:
    """`[paths, tasks, items]`."""
    worker = MergeWorker(
        WorkerSpec(pool=experiment.pool, fitness=experiment.fitness, engine=experiment.engine, seed=experiment.seed)
    )
    asked = ItemSet.of({task: tuple(range(min(items, size))) for task, size in worker.info().sizes.items()})
    rows = []
    for number, choice in enumerate(choices):
        path = tuple(Hop(source=source, layer=layer) for layer, source in enumerate(choice))
        recipe = space.decode(space.genome_of(path, space.start))
        outcome = worker.run(Job(candidate=number, phase="search", recipe=recipe, items=asked))
        if not isinstance(outcome, Scored):
            raise RuntimeError(f"{choice}: {outcome}")
        rows.append([answers.values for answers in outcome.responses])
        print(f"\r{number + 1} of {len(choices)} paths", end="", flush=True)
    return np.array(rows, dtype=np.int8)
