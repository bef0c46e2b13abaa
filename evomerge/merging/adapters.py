"""Merges of LoRA adapters that are adapters themselves, written as such: exact, at a hundredth of the model's size.

With `tau_k = s_k B_k A_k`, any sum `sum_k c_k tau_k` is `B A` for `A = [A_1; A_2; ...]` and `B = [c_1 s_1 B_1,
c_2 s_2 B_2, ...]`, of rank `sum_k r_k`. Coefficients may differ from weight to weight. Where adapters touch different
weights, or with different ranks, zeros fill up, so that the result has one rank throughout. A merge in core space is
`(U M) V^T` already. Knows nothing of operators: it reads plans.

Legend: `r_k` rank, `s_k` scale, `A_k` of shape `[r_k, in]` and `B_k` of shape `[out, r_k]` factors of adapter k.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

from evomerge.errors import ConfigError, Fault
from evomerge.merging.atomic import complete_or_absent
from evomerge.merging.executor import core_factors
from evomerge.merging.lora import ADAPTER_CONFIG, ADAPTER_FILE, Adapter
from evomerge.merging.plan import Copy, Core, Delta, Linear, TensorPlan, Term

if TYPE_CHECKING:
    from evomerge.merging.checkpoint import Model
    from evomerge.merging.lora import LowRank
    from evomerge.merging.plan import MergePlan
    from evomerge.merging.pool import ModelPool

__all__ = ["export_adapter"]

_TOLERANCE = 1e-5
"""How far from one the weights of an average may add up: a recipe's numbers have six decimals."""


def export_adapter(plan: MergePlan, pool: ModelPool, out: Path, *, extra_files: Mapping[str, str] = {}) -> None:
    """Write a merge of adapters as a PEFT folder, to be loaded on the pool's base.

    On that base it gives the weights that the plan gives, before their one rounding to the output's dtype.

    Example:
        >>> export_adapter(lower(recipe, pool), pool, Path("merged-adapter"))  # doctest: +SKIP

    Args:
        plan: the lowered recipe: a sum of task vectors, or a merge in core space.
        pool: the models that it names; those that it reads are adapters.
        out: the new folder; its parents are made as needed.
        extra_files: texts by file name, for example a model card.

    Raises:
        ConfigError: the plan has no low rank, or reads models that are no plain adapters.
        StoreError: `out` exists.
        DiskError: the disk refused a write; nothing is left behind.
    """
    moved = any(tensor.origin != tensor.name or tensor.is_amplified for tensor in plan.tensors)
    if moved or len(plan.tensors) != len(pool.specs):
        raise _refused("path", "expected the merge's own layers in order; got a path through layers")
    coefficients = {tensor.name: _coefficients(tensor, pool.base) for tensor in plan.tensors}
    read = {source for tensor in plan.tensors for source in tensor.sources}
    if variants := sorted(read.difference(pool.models)):
        raise _refused(", ".join(variants), "expected adapters as they are; got variants, which have no factors")
    adapters = {name: _plain(name, pool.models[name]) for name in pool.experts if name in read}
    changes = {}
    for tensor in plan.tensors:
        if owners := {source: adapter for source, adapter in adapters.items() if tensor.name in adapter.factors}:
            changes[tensor.name] = _Change(
                owners, tensor.name, *_sides(tensor, owners, coefficients[tensor.name], pool)
            )
    rank = max((change.left.shape[1] for change in changes.values()), default=0)
    if not rank:
        raise _refused(pool.base, "expected a merge that reads adapters; got the base alone")
    with complete_or_absent(out) as folder:
        tensors = {name: values for change in changes.values() for name, values in change.stored(rank).items()}
        save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
        config = json.dumps(_config([*changes.values()], rank), indent=2) + "\n"
        for name, text in {**extra_files, ADAPTER_CONFIG: config}.items():
            (folder / name).write_text(text, encoding="utf-8")


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """The merged change of one weight, `left right` in its stored shape, under the names of the first adapter."""

    owners: Mapping[str, Adapter]
    name: str
    left: torch.Tensor
    right: torch.Tensor

    @property
    def model(self) -> Mapping[str, Any]:
        """The configuration that it follows."""
        return next(iter(self.owners.values())).own.config

    @property
    def form(self) -> LowRank:
        """The change that it is named after."""
        return next(iter(self.owners.values())).factors[self.name]

    def stored(self, rank: int) -> dict[str, torch.Tensor]:
        """A of shape `[rank, in]` and B of shape `[out, rank]`."""
        a, b = (self.left.T, self.right.T) if self.form.transposed else (self.right, self.left)
        spare = rank - len(a)
        return {self.form.a: pad(a, (0, 0, 0, spare)).contiguous(), self.form.b: pad(b, (0, spare)).contiguous()}


def _coefficients(tensor: TensorPlan, base: str) -> dict[str, float]:
    """What each task vector is multiplied with, by source; nothing in core space."""
    kernel = tensor.kernel
    if isinstance(kernel, Core) and tensor.damping is None:
        return {}
    if isinstance(kernel, Copy):
        found = {kernel.source: 1.0}
    elif isinstance(kernel, Linear | Delta) and tensor.damping is None and all(map(_is_plain, kernel.terms)):
        scale = kernel.scale if isinstance(kernel, Delta) else 1.0
        found = {term.source: scale * term.weight / kernel.divisor for term in kernel.terms}
    else:
        raise _refused(
            f"tensor {tensor.name}",
            "expected a weighted sum of task vectors, or a merge in core space; got a merge element by element, or of "
            "whole matrices, which has no low rank",
        )
    if isinstance(kernel, Delta) and kernel.base != base:  # an expert, which brings its own change
        found[kernel.base] = 1.0 - sum(found.values())
    if isinstance(kernel, Linear) and abs(sum(found.values()) - 1) > _TOLERANCE:
        raise _refused(
            f"tensor {tensor.name}",
            f"expected weights that add up to 1, so that the base comes through whole; got {sum(found.values()):.6g}",
        )
    return {source: coefficient for source, coefficient in found.items() if source != base}


def _is_plain(term: Term) -> bool:
    return term.keep is None and term.factors is None


def _plain(name: str, model: Model) -> Adapter:
    if not isinstance(model, Adapter):
        raise _refused(name, "expected a LoRA adapter; got a full model")
    if model.whole:
        raise _refused(
            name,
            f"expected low-rank changes alone; got weights that are stored whole, such as {min(model.whole)} "
            "(modules_to_save)",
        )
    return model


def _refused(place: str, message: str) -> ConfigError:
    fault = Fault(path=place, message=f"{message}; export the full model instead")
    return ConfigError("an adapter cannot hold this merge", [fault])


def _sides(
    tensor: TensorPlan, owners: Mapping[str, Adapter], coefficients: Mapping[str, float], pool: ModelPool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of one merged change, fp32 `[rows, r]` and `[r, columns]`."""
    if isinstance(tensor.kernel, Core):
        return core_factors(tensor.kernel, tensor.name, pool)
    sides = [adapter.sides(tensor.name) for adapter in owners.values()]
    scales = [coefficients.get(source, 0.0) * adapter.factors[tensor.name].scale for source, adapter in owners.items()]
    lefts = [left * scale for (left, _), scale in zip(sides, scales, strict=True)]
    return torch.cat(lefts, dim=1), torch.cat([right for _, right in sides])


def _config(changes: Sequence[_Change], rank: int) -> dict[str, Any]:
    """PEFT's description of the result; alpha equals the rank, so that the scale is 1."""
    model = changes[0].model
    return {
        "peft_type": "LORA",
        "task_type": model.get("task_type"),
        "base_model_name_or_path": model.get("base_model_name_or_path"),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(change.form.transposed and not change.form.embedding for change in changes),
        "target_modules": [change.form.module for change in changes],
        "inference_mode": True,
    }
