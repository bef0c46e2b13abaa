"""From the configuration of a pool to the pool: what the driver and every worker open alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.merging.calibrated import Calibration, calibrated
from evomerge.merging.pool import ModelPool

if TYPE_CHECKING:
    from evomerge.config import PoolConfig

__all__ = ["configured_pool"]


def configured_pool(config: PoolConfig) -> ModelPool:
    """The models of a configuration, checked for everything that would keep them from being merged.

    Raises:
        PoolError: they cannot be read, or do not fit each other; or a calibration text cannot be read.
    """
    pool = ModelPool.open(config.base, config.folders, tokenizer=config.tokenizer)
    if config.calibration is None:
        return pool
    return calibrated(pool, Calibration.read(config.texts, config.calibration.tokens))
