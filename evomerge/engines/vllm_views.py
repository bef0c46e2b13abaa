"""Where the tensors of a checkpoint lie in vLLM's parameters: fused with others, and cut for tensor parallelism.

vLLM joins `q_proj`, `k_proj` and `v_proj` into one parameter, `gate_proj` and `up_proj` into another, and gives each
rank its rows or columns of every matrix. A view is the part of one tensor that a rank holds, as memory that may be
written to. Only the unquantized dense layers below are known; anything else gives no views, and vLLM's own loading is
used. Knows nothing of plans' meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch

from evomerge.merging.executor import execute_part

if TYPE_CHECKING:
    from evomerge.merging.plan import TensorPlan
    from evomerge.merging.pool import TensorSpec
    from evomerge.merging.residency import Residence

__all__ = ["View", "Views", "module_of", "views_of"]


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class View:
    """What one rank holds of one tensor.

    Attributes:
        memory: inside vLLM's parameter.
        axis: that is cut; None if the rank holds the whole tensor.
        start: along that axis, the first index that the rank holds.
    """

    memory: torch.Tensor
    axis: int | None = None
    start: int = 0


@final
@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """All tensors of a model, by name."""

    by_name: Mapping[str, View]

    def write(self, wanted: Mapping[str, TensorPlan | None], residence: Residence) -> None:
        """Execute plans into the parameters; None stands for zeros."""
        for name in (name for name, plan in wanted.items() if plan is None):
            self.by_name[name].memory.zero_()
        for plan in residence.ahead([plan for plan in wanted.values() if plan is not None]):
            view = self.by_name[plan.name]
            execute_part(plan, residence, view.memory, view.axis or 0, view.start)


def module_of(model: Any, name: str) -> str:
    """The vLLM module that a tensor of a checkpoint ends up in.

    Example:
        `model.layers.3.self_attn.q_proj.weight` lies in `model.layers.3.self_attn.qkv_proj`.
    """
    return _placed(model, name)[0].rpartition(".")[0]


def _placed(model: Any, name: str) -> tuple[str, str | None]:
    """The parameter's name in vLLM, and which of the tensors that are fused in it this is."""
    for fused, parts in model.packed_modules_mapping.items():
        for part in parts:
            if f".{part}." in name and len(parts) > 1:
                return name.replace(f".{part}.", f".{fused}."), part
    return name, None


def views_of(model: Any, specs: Mapping[str, TensorSpec]) -> Views | None:
    """The views of all tensors, or None where some tensor does not lie in a parameter as it would be loaded.

    Args:
        model: vLLM's.
        specs: tensors of the checkpoint.
    """
    views = {name: _view(model, spec) for name, spec in specs.items()}
    found = {name: view for name, view in views.items() if view is not None}
    return Views(found) if len(found) == len(views) else None


def _view(model: Any, spec: TensorSpec) -> View | None:
    placed, part = _placed(model, spec.name)
    path, _, leaf = placed.rpartition(".")
    try:
        module = model.get_submodule(path)
        parameter = module.get_parameter(leaf).data
    except AttributeError:
        return None
    if parameter.ndim != len(spec.shape):
        return None  # packed for a kernel
    start, memory = None, parameter
    if hasattr(module, "shard_indices"):
        rows = module.shard_indices
        start, stop = rows.org_vocab_start_index, rows.org_vocab_end_index
        memory = parameter[: stop - start]
    elif part is not None:
        offset, length, start = _fused(model, module, part)
        memory = parameter[offset : offset + length]
        if memory.shape[0] != length:
            return None
    return _cut(memory, spec.shape, start, getattr(module, "tp_rank", 0), getattr(module, "tp_size", 1))


def _fused(model: Any, module: Any, part: str) -> tuple[int, int, int]:
    """Of one tensor in a fused parameter: first row and number of rows there, and first row of the whole tensor."""
    if hasattr(module, "num_kv_head_replicas"):  # queries, keys and values
        queries, keys = module.num_heads * module.head_size, module.num_kv_heads * module.head_size
        values = module.num_kv_heads * module.v_head_size
        at = {"q_proj": (0, queries), "k_proj": (queries, keys), "v_proj": (queries + keys, values)}[part]
        rank = module.tp_rank if part == "q_proj" else module.tp_rank // module.num_kv_head_replicas
        return *at, rank * at[1]
    parts = next(parts for parts in model.packed_modules_mapping.values() if part in parts)
    sizes = [size // module.tp_size for size in module.output_sizes]
    place = parts.index(part)
    return sum(sizes[:place]), sizes[place], module.tp_rank * sizes[place]


def _cut(memory: torch.Tensor, shape: tuple[int, ...], start: int | None, rank: int, ranks: int) -> View | None:
    """The view of memory that holds all of a tensor, or a share along one axis: from `start`, or the rank's own."""
    cut = [axis for axis, (here, whole) in enumerate(zip(memory.shape, shape, strict=True)) if here != whole]
    if not cut:
        return View(memory=memory)
    (axis, *more) = cut
    here = memory.shape[axis]
    first = rank * here if start is None else start
    if more or not here or first + here > shape[axis] or (axis > 0 and here * ranks != shape[axis]):
        return None
    return View(memory=memory, axis=axis, start=first)
