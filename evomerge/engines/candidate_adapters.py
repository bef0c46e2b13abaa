"""Candidates as LoRA adapters: which pools bear it, and the folder that an engine loads. Knows nothing of engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evomerge.errors import ConfigError, MergeError, PoolError
from evomerge.merging.layout import is_output_projection, is_token_embedding
from evomerge.merging.lora import Adapter

if TYPE_CHECKING:
    from pathlib import Path

    from evomerge.merging.pool import ModelPool
    from evomerge.recipe import Recipe

__all__ = ["adapted_modules", "require_adapters", "served_rank", "write_adapter"]

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM reserves memory for."""


def require_adapters(pool: ModelPool) -> None:
    """Make sure that whatever is summed of a pool's experts can be served on its base.

    Adapters of an output head are refused: engines leave them out, without a word, when they tell how likely the tokens
    of a prompt are.

    Raises:
        PoolError: names every expert that is in the way.
    """
    if faults := [f"  {name}: {fault}" for name in pool.experts for fault in _faults(pool, name)]:
        raise PoolError(
            "\n".join(
                [
                    "engine: candidates are served as adapters, so all experts must be plain LoRA adapters:",
                    *faults,
                    "Leave those experts out, or take an engine that merges weights.",
                ]
            )
        )
    served_rank(pool)


def _faults(pool: ModelPool, name: str) -> Iterator[str]:
    model = pool.models[name]
    if not isinstance(model, Adapter):
        yield "got a full model"
        return
    if model.whole:
        yield f"stores weights whole, such as {min(model.whole)} (modules_to_save)"
    if outer := sorted(
        tensor for tensor in model.factors if is_token_embedding(tensor) or is_output_projection(tensor)
    ):
        yield f"changes {', '.join(outer)}, which engines do not apply to log-probabilities of prompts"


def adapted_modules(pool: ModelPool) -> list[str]:
    """Names of the modules that adapters change, for example `q_proj`."""
    return sorted({name.split(".")[-2] for adapter in _adapters(pool) for name in adapter.factors})


def _adapters(pool: ModelPool) -> list[Adapter]:
    return [model for model in pool.models.values() if isinstance(model, Adapter)]


def served_rank(pool: ModelPool) -> int:
    """The rank that vLLM must be prepared for: that of all adapters together, or the next one that it knows.

    Raises:
        PoolError: it knows none so high.
    """
    adapters = _adapters(pool)
    names = {name for adapter in adapters for name in adapter.factors}
    rank = max(sum(adapter.factors[name].rank for adapter in adapters if name in adapter.factors) for name in names)
    if rank > _RANKS[-1]:
        raise PoolError(
            f"engine: candidates are served as adapters: expected ranks of all adapters that add up to {_RANKS[-1]} at "
            f"most; got {rank}; leave some experts out, or take an engine that merges weights"
        )
    return next(known for known in _RANKS if known >= rank)


def write_adapter(recipe: Recipe, pool: ModelPool, folder: Path) -> bool:
    """Write a candidate as a PEFT folder.

    Args:
        recipe: the candidate.
        pool: base and adapters.
        folder: the new folder.

    Returns:
        False where the candidate is the base, for which nothing is written.

    Raises:
        MergeError: the candidate is no sum of adapters, and so no adapter.
        DiskError: the disk refused a write.
    """
    from evomerge.merging.adapters import export_adapter
    from evomerge.merging.operators import lower
    from evomerge.merging.plan import Copy

    plan = lower(recipe, pool)
    if not recipe.path and all(tensor.kernel == Copy(source=pool.base) for tensor in plan.tensors):
        return False
    try:
        export_adapter(plan, pool, folder)
    except ConfigError as error:
        raise MergeError(str(error)) from error
    return True
