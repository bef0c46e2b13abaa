"""Run a merge plan: one pass over the weights, block by block, straight into the tensors of a live model.

Differences and sums are fp32, in the order of a plan's terms, rounded once to the plan's dtype; results do not depend
on the size of the blocks. Results beyond fp16's range are clamped to it, so that finite weights give finite weights.
Knows nothing of operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from evomerge.errors import MergeError
from evomerge.merging import contests, kernels, matrices
from evomerge.merging.compiled import COMPILER, Compiler
from evomerge.merging.core import core_space
from evomerge.merging.facts import facts_of
from evomerge.merging.footprint import BLOCK, DEVICE_BLOCK
from evomerge.merging.operands import operands_of
from evomerge.merging.plan import (
    Consensus,
    Copy,
    Core,
    Delta,
    Isotropic,
    Linear,
    MergePlan,
    Overlap,
    TensorPlan,
    Vote,
    Winner,
)
from evomerge.merging.residency import Residence

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool

__all__ = ["BLOCK", "core_factors", "execute", "execute_into", "execute_part"]

_FP16_MAX = 65504.0


def execute(
    plan: MergePlan, pool: ModelPool, *, block: int = BLOCK, compiler: Compiler = COMPILER
) -> Iterator[tuple[str, torch.Tensor]]:
    """Merge tensor by tensor.

    Args:
        plan: what to compute.
        pool: the models that the plan names.
        block: elements computed at a time by kernels that are not compiled.
        compiler: decides what is compiled.

    Yields:
        Names and new tensors on the CPU, in the plan's order, shapes and dtypes.
    """
    for tensor in plan.tensors:
        result = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
        _write(tensor, Residence(pool=pool), result, block, compiler)
        yield tensor.name, result


def execute_into(
    plan: MergePlan,
    pool: ModelPool,
    outputs: Mapping[str, torch.Tensor],
    only: Collection[str] | None = None,
    *,
    block: int | None = None,
    compiler: Compiler = COMPILER,
    residence: Residence | None = None,
) -> None:
    """Merge in place: overwrite the tensors of a live model.

    Values are rounded to the plan's dtype first, so a live model of a wider dtype computes with exactly the weights
    that an export would hold.

    Example:
        >>> execute_into(plan, pool, model.state_dict(), only=plan.changed(previous))  # doctest: +SKIP

    Args:
        plan: what to compute.
        pool: the models that the plan names.
        outputs: tensors by name, of any device, dtype and strides, in the plan's shapes; others are left alone.
        only: names of the tensors to write; None writes all.
        block: elements computed at a time by kernels that are not compiled; None for what suits the device.
        compiler: decides what is compiled.
        residence: where the pool's tensors are kept; None reads its files.

    Raises:
        MergeError: an output is missing or has another shape; nothing is written then.
    """
    tensors = [tensor for tensor in plan.tensors if only is None or tensor.name in only]
    _check(tensors, outputs)
    there = residence or Residence(pool=pool)
    for tensor in there.ahead(tensors):
        _write(tensor, there, outputs[tensor.name], block, compiler)


@torch.inference_mode()
def execute_part(
    tensor: TensorPlan, there: Residence, out: torch.Tensor, axis: int, start: int, *, compiler: Compiler = COMPILER
) -> None:
    """Merge in place the part of one tensor that a rank of a tensor-parallel model holds; it may be all of it.

    The values are those of the whole tensor's merge. Only the part is computed, unless its elements depend on others.

    Args:
        tensor: what to compute.
        there: the pool, and where its tensors are kept.
        out: the part, as long along `axis` as the rank's share, and as the tensor along all others.
        axis: that is cut.
        start: first index of the part along it.
        compiler: decides what is compiled.
    """
    if tensor.shape == tuple(out.shape):
        _write(tensor, there, out, None, compiler)
        return
    kernel, length = tensor.kernel, out.shape[axis]
    if isinstance(kernel, Copy) and not tensor.is_amplified:
        _store(there.whole(tensor, kernel.source).narrow(axis, start, length), out, tensor.dtype)
        return
    offset = start * math.prod(tensor.shape[1:])
    if there.approximate or not _is_local(tensor, axis, offset):
        whole = torch.empty(tensor.shape, dtype=out.dtype, device=out.device)
        _write(tensor, there, whole, None, compiler)
        out.copy_(whole.narrow(axis, start, length))
        return
    parts = {source: there.whole(tensor, source).narrow(axis, start, length) for source in tensor.sources}
    inputs = {source: part.reshape(-1) for source, part in parts.items()}
    _write_elements(tensor, inputs, there, out, compiler=compiler, offset=offset)


def _is_local(tensor: TensorPlan, axis: int, offset: int) -> bool:
    """Whether elements follow from their own inputs alone; along the first axis, also from their place."""
    kernel = tensor.kernel
    if isinstance(kernel, Copy | Isotropic | Core) or (isinstance(kernel, Vote) and kernel.zero == "majority"):
        return False
    return (axis == 0 and offset % 2 == 0) or not _has_places(tensor)


def _has_places(tensor: TensorPlan) -> bool:
    """Whether anything depends on where in the tensor an element stands."""
    kernel = tensor.kernel
    if isinstance(kernel, Copy | Core) or tensor.damping is not None or getattr(kernel, "select", None) is not None:
        return True
    by_rank = isinstance(kernel, Winner) and kernel.by == "rank"
    return by_rank or any(term.keep is not None or term.factors is not None for term in kernel.terms)


def _check(tensors: Sequence[TensorPlan], outputs: Mapping[str, torch.Tensor]) -> None:
    for tensor in tensors:
        found = tuple(outputs[tensor.name].shape) if tensor.name in outputs else None
        if found != tensor.shape:
            got = "no tensor of that name" if found is None else f"shape {found}"
            raise MergeError(
                f"tensor {tensor.name}: expected shape {tensor.shape} in the live model; got {got}; "
                "load the live model from the base of this pool"
            )


@torch.inference_mode()
def _write(tensor: TensorPlan, there: Residence, out: torch.Tensor, block: int | None, compiler: Compiler) -> None:
    if isinstance(tensor.kernel, Copy) and not tensor.is_amplified:
        _store(there.whole(tensor, tensor.kernel.source), out, tensor.dtype)
        return
    if isinstance(tensor.kernel, Copy | Isotropic | Core):
        values = _whole(tensor, tensor.kernel, there)
        _store(kernels.amplified(values, tensor.gain, tensor.shift), out, tensor.dtype)
        return
    _write_elements(tensor, there.inputs(tensor), there, out, compiler=compiler, block=block)


def _write_elements(
    tensor: TensorPlan,
    inputs: Mapping[str, torch.Tensor],
    there: Residence,
    out: torch.Tensor,
    *,
    compiler: Compiler,
    offset: int = 0,
    block: int | None = None,
) -> None:
    """All elements of a tensor, or a run of them from `offset` on."""
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    facts = {source: fact.to(there.device) for source, fact in facts_of(tensor, there.pool).items()}
    compiled = offset == 0 or not _has_places(tensor)  # what is compiled counts places from 0
    if not compiled or not compiler.run(operands_of(tensor, inputs, facts), flat):
        length = min(block or (BLOCK if there.device.type == "cpu" else DEVICE_BLOCK), len(flat))
        scratch = torch.empty(2 * len(inputs) + 2, length, device=there.device)
        _write_blocks(tensor, inputs, facts, flat, scratch, offset=offset)
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def _write_blocks(
    tensor: TensorPlan,
    inputs: Mapping[str, torch.Tensor],
    facts: Mapping[str, torch.Tensor],
    flat: torch.Tensor,
    scratch: torch.Tensor,
    *,
    offset: int,
) -> None:
    whole = kernels.Block(
        start=offset,
        inputs=inputs,
        scratch=scratch,
        facts=facts,
        damping=tensor.damping,
        gain=tensor.gain,
        shift=tensor.shift,
    )
    if isinstance(tensor.kernel, Vote):
        _elect(tensor.kernel, whole, flat, tensor.dtype)
    else:
        _sweep(partial(_COMPUTE[type(tensor.kernel)], tensor.kernel), whole, flat, tensor.dtype)


def _whole(tensor: TensorPlan, kernel: Copy | Isotropic | Core, there: Residence) -> torch.Tensor:
    """What a kernel that takes whole tensors makes of one, damped, in fp32 and in memory of its own."""
    if isinstance(kernel, Copy):
        return there.whole(tensor, kernel.source).to(torch.float32, copy=True)
    if isinstance(kernel, Isotropic):
        values = matrices.isotropic(kernel, {source: there.whole(tensor, source) for source in tensor.sources})
    else:
        left, right = (side.to(there.device) for side in core_factors(kernel, tensor.origin, there.pool))
        values = torch.addmm(there.whole(tensor, kernel.base).float(), left, right)
    if tensor.damping is None:
        return values
    inputs = {tensor.damping.base: there.whole(tensor, tensor.damping.base).reshape(-1)}
    block = kernels.Block(start=0, inputs=inputs, scratch=values, facts={}, damping=tensor.damping)
    return kernels.damped(values.view(-1), block).view(tensor.shape)


def core_factors(kernel: Core, name: str, pool: ModelPool) -> tuple[torch.Tensor, torch.Tensor]:
    """`U M` and `V^T` of one weight, fp32: its merged change is their product, of low rank."""
    space = core_space(pool, kernel.sources)
    span = space.spans[name]
    inner = TensorPlan(name=name, shape=span.shape, dtype="float32", kernel=kernel.inner)
    ((_, merged),) = execute(MergePlan(tensors=(inner,)), space.pool)
    return span.factors(merged)


def _elect(kernel: Vote, whole: kernels.Block, flat: torch.Tensor, dtype: str) -> None:
    """Elect + where ballots cancel; once the majority is known to be -, do the blocks where it matters again."""
    tally = kernels.Tally() if kernel.zero == "majority" else None
    _sweep(partial(kernels.vote, kernel, tally=tally), whole, flat, dtype)
    if tally is not None and tally.majority < 0:
        _sweep(partial(kernels.vote, kernel, zero_sign=-1), whole, flat, dtype, tally.cancelled)


def _sweep(
    compute: Callable[[kernels.Block], torch.Tensor],
    whole: kernels.Block,
    flat: torch.Tensor,
    dtype: str,
    starts: Iterable[int] | None = None,
) -> None:
    """Compute a tensor in blocks as long as its scratch: all of it, or the blocks that start at some elements."""
    size = whole.scratch.shape[1]
    for start in range(0, len(flat), size) if starts is None else starts:
        out = flat[start : start + size]
        here = {source: values[start : start + size] for source, values in whole.inputs.items()}
        block = replace(whole, start=whole.start + start, inputs=here, scratch=whole.scratch[:, : len(out)])
        _store(kernels.finished(compute(block), block), out, dtype)


def _store(values: torch.Tensor, out: torch.Tensor, dtype: str) -> None:
    """Round to a dtype, then widen or narrow to that of `out`."""
    target: torch.dtype = getattr(torch, dtype)
    if target == torch.float16 and values.dtype != target:
        values = values.float().clamp(-_FP16_MAX, _FP16_MAX)  # in bf16 the limit itself would be rounded up
    out.copy_(values if out.dtype == target else values.to(target))


_COMPUTE: Mapping[type, Callable[[Any, kernels.Block], torch.Tensor]] = {
    Linear: kernels.linear,
    Delta: kernels.delta,
    Consensus: contests.consensus,
    Winner: contests.winner,
    Overlap: contests.overlap,
}
