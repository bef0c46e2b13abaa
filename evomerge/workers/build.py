"""From a configuration to an executor."""

from __future__ import annotations

from functools import partial

from evomerge.config import ExecutorConfig, RayConfig
from evomerge.workers.base import Executor, WorkerSpec
from evomerge.workers.candidate import MergeWorker
from evomerge.workers.serial import SerialExecutor

__all__ = ["build_executor"]


def build_executor(config: ExecutorConfig, spec: WorkerSpec) -> Executor:
    """The executor that a configuration asks for; nothing is started yet.

    Raises:
        MissingExtraError: Ray is asked for and not installed.
    """
    factory = partial(MergeWorker, spec)
    if isinstance(config, RayConfig):
        from evomerge.workers.ray_executor import RayExecutor

        return RayExecutor(config, factory, threads=spec.engine.threads, shard=spec.engine.shard_size)
    return SerialExecutor(factory)
