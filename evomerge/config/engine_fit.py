"""Whether an engine can serve what a space proposes and a fitness asks. Knows nothing of models on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evomerge.config.engines import TransformersConfig, VllmConfig
from evomerge.config.routing import PathSpaceConfig
from evomerge.config.scorers import KlConfig

if TYPE_CHECKING:
    from evomerge.config.engines import EngineConfig
    from evomerge.config.fitness import FitnessConfig
    from evomerge.config.space import OperatorConfig, SpaceConfig

__all__ = ["engine_misfit"]

_SUMS = ("linear", "task_arithmetic", "metric_average", "decay_average")
"""Operators whose merges are sums of task vectors, tensor by tensor, and so adapters where those are."""


def engine_misfit(engine: EngineConfig, space: SpaceConfig, fitness: FitnessConfig, gpus: float) -> str | None:
    """Why an engine cannot serve an experiment; None if it can.

    Args:
        engine: how candidates are scored.
        space: what is searched.
        fitness: what they are asked.
        gpus: of each worker; 0 where that is not said.
    """
    return next(_misfits(engine, space, fitness, gpus), None)


def _misfits(engine: EngineConfig, space: SpaceConfig, fitness: FitnessConfig, gpus: float) -> Iterator[str]:
    measured = sorted({metric.task for metric in fitness.metrics} & fitness.scorers.keys())
    kl = [name for name in measured if isinstance(fitness.scorers[name], KlConfig)]
    if kl and not isinstance(engine, TransformersConfig):
        yield (
            f"engine.kind: {engine.kind} tells how likely given tokens are; the scorers {', '.join(kl)} need all "
            "of a distribution; write transformers"
        )
    if isinstance(engine, VllmConfig):
        ranks = engine.tensor_parallel_size
        if 0 < gpus < ranks or 1 < gpus != ranks:
            yield (
                f"engine.tensor_parallel_size: expected as many as each worker has GPUs (executor.gpus: {gpus:g}); "
                f"got {ranks}"
            )
    if engine.serves_adapters and (reason := _without_adapter(space)):
        yield (
            f"engine: candidates that are served as adapters must be sums of adapters' changes; got {reason}; "
            "choose another space, or an engine that merges weights (kind: transformers, or vllm with candidates: "
            "weights)"
        )
    if isinstance(engine, VllmConfig) and engine.serves_adapters and engine.deltas != "exact":
        yield "engine.deltas: with candidates: adapters nothing is merged; leave deltas out"


def _without_adapter(space: SpaceConfig) -> str | None:
    """What in a space has no adapter."""
    if isinstance(space, PathSpaceConfig):
        return f"space.kind: {space.kind}, whose candidates have layers of their own"
    if not space.operators and space.kind != "soup":
        return f"space.kind: {space.kind}"
    if space.every_transform:
        return f"the transforms {', '.join(space.every_transform)}"
    if "importance" in space.statistics:
        return "omega, which weighs inputs one by one"
    return next((reason for operator in space.operators if (reason := _no_sum(operator))), None)


def _no_sum(operator: OperatorConfig) -> str | None:
    if operator.space == "core":
        return None
    if operator.name not in _SUMS:
        return f"the operator {operator.name}; {' and '.join(_SUMS)} are such sums, and any in 'space: core'"
    if operator.name == "linear" and False in operator.choices("normalize"):
        return "linear with normalize: false, whose weights need not add up to 1"
    return None
