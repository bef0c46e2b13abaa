"""From a configuration to a live engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.config import OpenaiConfig, VllmConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evomerge.config import EngineConfig, PoolConfig
    from evomerge.engines.base import Engine
    from evomerge.merging.pool import ModelPool

__all__ = ["build_engine"]


def build_engine(
    pool: ModelPool,
    source: PoolConfig,
    config: EngineConfig,
    *,
    plugins: Sequence[Path] = (),
    depth: int | None = None,
    workers: int = 1,
    gpu: float = 1.0,
) -> Engine:
    """The engine that a configuration asks for, started.

    Args:
        pool: base and experts.
        source: where the pool came from.
        config: which engine.
        plugins: files that this process has run already, and others that an engine starts must.
        depth: most layers of a candidate, if they are more than the models have.
        workers: how many like this one share the machine, itself included.
        gpu: share of a GPU that it may take.

    Raises:
        EvomergeError: see the engines.
    """
    if isinstance(config, VllmConfig) and config.serves_adapters:
        from evomerge.engines.vllm_adapters import VllmAdapters

        return VllmAdapters(pool, config, gpu=gpu)
    if isinstance(config, VllmConfig):
        from evomerge.engines.vllm_engine import VllmEngine
        from evomerge.engines.vllm_worker import Opening

        return VllmEngine(pool, Opening(pool=source, engine=config, plugins=tuple(plugins)), depth=depth, gpu=gpu)
    if isinstance(config, OpenaiConfig):
        from evomerge.engines.openai_engine import OpenaiEngine

        return OpenaiEngine(pool, config)
    from evomerge.engines.transformers_engine import TransformersEngine

    return TransformersEngine(pool, config, depth=depth, workers=workers, gpu=gpu)
