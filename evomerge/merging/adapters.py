"""Linear merges of LoRA adapters, written as one adapter: exact, at a hundredth of the model's size.

With `tau_k = s_k B_k A_k`, any sum `sum_k c_k tau_k` is `B A` for `A = [A_1; A_2; ...]` and `B = [c_1 s_1 B_1,
c_2 s_2 B_2, ...]`, of rank `sum_k r_k`. Coefficients may differ from weight to weight. Where adapters touch different
weights, or with different ranks, zeros fill up, so that the result has one rank throughout. Knows nothing of operators:
it reads plans.

Legend: `r_k` rank, `s_k` scale, `A_k` of shape `[r_k, in]` and `B_k` of shape `[out, r_k]` factors of adapter k.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

from evomerge.errors import MergeError
from evomerge.merging.atomic import complete_or_absent
from evomerge.merging.lora import ADAPTER_CONFIG, ADAPTER_FILE, Adapter
from evomerge.merging.plan import Copy, Delta, Linear, TensorPlan, Term

if TYPE_CHECKING:
    from evomerge.merging.checkpoint import Model
    from evomerge.merging.lora import LowRank
    from evomerge.merging.plan import MergePlan
    from evomerge.merging.pool import ModelPool

__all__ = ["export_adapter"]

_TOLERANCE = 1e-5
"""How far from one the weights of an average may add up: a recipe's numbers have six decimals."""


def export_adapter(plan: MergePlan, pool: ModelPool, out: Path) -> None:
    """Write a linear merge of adapters as a PEFT folder, to be loaded on the pool's base.

    On that base it gives the weights that the plan gives, before their one rounding to the output's dtype.

    Example:
        >>> export_adapter(lower(recipe, pool), pool, Path("merged-adapter"))  # doctest: +SKIP

    Args:
        plan: the lowered recipe.
        pool: the models that it names; those that it reads are adapters.
        out: the new folder; its parents are made as needed.

    Raises:
        MergeError: the plan is no sum of task vectors, or reads models that are no plain adapters.
        StoreError: `out` exists.
        DiskError: the disk refused a write; nothing is left behind.
    """
    coefficients = {tensor.name: _coefficients(tensor, pool.base) for tensor in plan.tensors}
    adapters = {
        name: _plain(name, pool.models[name]) for name in pool.experts if any(name in c for c in coefficients.values())
    }
    targets = [name for name in coefficients if any(name in adapter.factors for adapter in adapters.values())]
    changes = {name: _changes(name, coefficients[name], adapters) for name in targets}
    rank = max((sum(change.rank for _, change, _ in parts) for parts in changes.values()), default=0)
    if not rank:
        raise MergeError("expected a merge that reads adapters; got the base alone; export the full model instead")
    with complete_or_absent(out) as folder:
        tensors = {key: tensor for parts in changes.values() for key, tensor in _concatenated(parts, rank).items()}
        save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
        config = _config([parts[0] for parts in changes.values()], rank)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_Part = tuple[Adapter, "LowRank", float]
"""An adapter, its change of one weight, and the coefficient of that."""


def _coefficients(tensor: TensorPlan, base: str) -> dict[str, float]:
    """What each task vector is multiplied with, by source."""
    kernel = tensor.kernel
    if isinstance(kernel, Copy):
        found = {kernel.source: 1.0}
    elif isinstance(kernel, Linear | Delta) and all(_is_plain(term) for term in kernel.terms):
        scale = kernel.scale if isinstance(kernel, Delta) else 1.0
        found = {term.source: scale * term.weight / kernel.divisor for term in kernel.terms}
    else:
        raise MergeError(
            f"tensor {tensor.name}: expected a weighted sum of task vectors; got a merge element by element, which "
            "has no low rank; export the full model instead"
        )
    if (
        isinstance(kernel, Delta) and kernel.base != base
    ):  # an expert is the base of this merge: it brings its own change
        found[kernel.base] = 1.0 - sum(found.values())
    if isinstance(kernel, Linear) and abs(sum(found.values()) - 1) > _TOLERANCE:
        raise MergeError(
            f"tensor {tensor.name}: expected weights that add up to 1, so that the base comes through whole; "
            f"got {sum(found.values()):.6g}; export the full model instead"
        )
    return {source: coefficient for source, coefficient in found.items() if source != base}


def _is_plain(term: Term) -> bool:
    return term.keep is None and term.factors is None


def _plain(name: str, model: Model) -> Adapter:
    if not isinstance(model, Adapter):
        raise MergeError(f"{name}: expected a LoRA adapter; got a full model; export the full model instead")
    if model.whole:
        raise MergeError(
            f"{name}: expected low-rank changes alone; got weights that are stored whole, such as {min(model.whole)} "
            "(modules_to_save); export the full model instead"
        )
    return model


def _changes(name: str, coefficients: Mapping[str, float], adapters: Mapping[str, Adapter]) -> list[_Part]:
    """Every change of one weight."""
    return [
        (adapter, adapter.factors[name], coefficients.get(source, 0.0))
        for source, adapter in adapters.items()
        if name in adapter.factors
    ]


def _concatenated(parts: Sequence[_Part], rank: int) -> dict[str, torch.Tensor]:
    """A of shape `[rank, in]` and B of shape `[out, rank]` in fp32, under the names of the first adapter."""
    a = torch.cat([adapter.own.tensor(change.a).float() for adapter, change, _ in parts])
    b = torch.cat([adapter.own.tensor(change.b).float() * (c * change.scale) for adapter, change, c in parts], dim=1)
    first, spare = parts[0][1], rank - len(a)
    return {first.a: pad(a, (0, 0, 0, spare)), first.b: pad(b, (0, spare))}


def _config(firsts: Sequence[_Part], rank: int) -> dict[str, Any]:
    """PEFT's description of the result; alpha equals the rank, so that the scale is 1."""
    model = firsts[0][0].own.config
    return {
        "peft_type": "LORA",
        "task_type": model.get("task_type"),
        "base_model_name_or_path": model.get("base_model_name_or_path"),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(change.transposed and not change.embedding for _, change, _ in firsts),
        "target_modules": [change.module for _, change, _ in firsts],
        "inference_mode": True,
    }
