"""Delta transforms: what replaces each expert's task vector `tau_k` by a cleaned `C_k`, once per pool.

An expert changed so is a source like any other. What weight 1 means, everywhere where `C_k` are added to the base:

- `none` and `star` change each expert by itself: weight 1 adds one whole expert, several overlap as in task
  arithmetic. Start from 1/K to 0.5.
- All others divide the weights among the experts of the pool: with weight 1 for each, the sum is the merge that the
  method's paper defines. Start from 1; tensors that the method says nothing about come as `tau_k / K`, whose sum is
  their average. A transform of the whole pool keeps its meaning when some of its experts get weight 0.

Knows neither recipes nor where facts and results are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from evomerge.merging.sparse import is_float
from evomerge.merging.transforms.deltas import Deltas, Step, deltas_of
from evomerge.merging.transforms.facts import Curvature, Facts
from evomerge.merging.transforms.steps import STEPS
from evomerge.recipe.transform_table import transform_of

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec

__all__ = ["Curvature", "Facts", "transformed"]


def transformed(name: str, pool: ModelPool, facts: Facts) -> Iterator[tuple[str, Deltas]]:
    """Transform every expert of a pool, one tensor at a time.

    As many tensors are worked on at a time as torch has threads, each by one thread: how a sum is split among threads
    shows in its last bits, and so equal inputs give equal bits on one machine. Memory holds a few tensors of each
    expert for each thread.

    Args:
        name: the transform as recipes spell it, for example `star:40`; without its number, the default.
        pool: the models. What an expert becomes may depend on all experts of the pool.
        facts: what transforms ask of an expert beside its weights.

    Yields:
        Name of a tensor that holds floats, in the order of the pool's specs, and `C_k` by expert: fp32, in the spec's
        shape.

    Raises:
        ValueError: no such transform, or a number that it does not take.
        MergeError: a fact is missing or does not fit, for a weight that the transform cannot do without it.
    """
    family, _, number = transform_of(name)[1].partition(":")
    threads = torch.get_num_threads()
    # what the initializer sets holds for the new thread, and is what later threads of the process start with
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as crew:
        try:
            step = crew.submit(STEPS[family], pool, facts, float(number or 0)).result()
            running: deque[Future[tuple[str, Deltas]]] = deque()
            for spec in filter(is_float, pool.specs):
                running.append(crew.submit(_stepped, step, pool, spec))
                if len(running) == threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            torch.set_num_threads(threads)


def _stepped(step: Step, pool: ModelPool, spec: TensorSpec) -> tuple[str, Deltas]:
    return spec.name, step(spec, deltas_of(pool, spec))
