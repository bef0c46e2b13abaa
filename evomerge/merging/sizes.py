"""How large a pool's models are, layer by layer: what costs are counted from (see `evomerge.recipe.Sizes`).

Told by names and shapes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, get_args

from evomerge.merging.layout import is_buffer, is_output_projection, is_token_embedding
from evomerge.merging.pool import ModelPool, TensorSpec
from evomerge.recipe import Cost, Sizes

__all__ = ["sizes_of"]

_WITHOUT_CACHE = frozenset({"linear_attn", "mixer", "mamba"})
"""Modules in the place of attention that keep a state of fixed size instead of keys and values."""

_CHOSEN, _EXPERTS = "num_experts_per_tok", ("num_local_experts", "num_experts", "n_routed_experts")
"""What configurations of mixtures of experts call the experts that a token meets, and all of them."""


def sizes_of(pool: ModelPool) -> Sizes:
    """What each layer of the pool's models costs, and what lies outside of the layers."""
    weights = [spec for spec in (*pool.specs, *pool.carried) if not is_buffer(spec.name, spec.shape)]
    met = _met(pool.config)
    each = [_costs([spec for spec in weights if spec.layer == layer], met, 1) for layer in range(pool.layers)]
    outside = _costs([spec for spec in weights if spec.layer is None], met, 0)
    if not any(is_output_projection(spec.name) for spec in weights):  # tied: the embedding is the output head, too
        outside["flops"] += 2 * sum(prod(spec.shape) for spec in weights if is_token_embedding(spec.name))
    return Sizes(outside=outside, layers={cost: tuple(layer[cost] for layer in each) for cost in get_args(Cost)})


def _costs(weights: Iterable[TensorSpec], met: float, layers: int) -> dict[Cost, int]:
    """What some weights cost, which make so many layers."""
    weights = list(weights)
    attends = any(spec.role == "attention" and _WITHOUT_CACHE.isdisjoint(spec.name.split(".")) for spec in weights)
    used = [
        (prod(spec.shape), met if "experts" in spec.name.split(".") else 1.0) for spec in weights if _multiplies(spec)
    ]
    return {
        "layers": layers,
        "kv_slots": layers * attends,
        "parameters": sum(prod(spec.shape) for spec in weights),
        "flops": 2 * round(sum(size * share for size, share in used)),
    }


def _multiplies(spec: TensorSpec) -> bool:
    """Whether this is a matrix that each token is multiplied with, and no table to look rows up in."""
    return len(spec.shape) > 1 and spec.role != "embed"


def _met(config: Mapping[str, Any]) -> float:
    """Share of a layer's experts that one token meets; 1 without experts."""
    settings = {**config, **(config.get("text_config") or {})}
    experts = next((settings[key] for key in _EXPERTS if settings.get(key)), None)
    return float(settings[_CHOSEN] / experts) if experts and settings.get(_CHOSEN) else 1.0
