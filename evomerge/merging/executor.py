"""Run a merge plan: one pass over the weights, block by block, straight into the tensors of a live model.

Differences and sums are fp32, in the order of a plan's terms, rounded once to the plan's dtype; results do not depend
on the size of the blocks. Results beyond fp16's range are clamped to it, so that finite weights give finite weights.
Knows nothing of operators.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from evomerge.errors import MergeError
from evomerge.merging import contests, kernels
from evomerge.merging.facts import facts_of
from evomerge.merging.plan import Consensus, Copy, Delta, Linear, MergePlan, Overlap, TensorPlan, Vote, Winner

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool

__all__ = ["BLOCK", "execute", "execute_into"]

BLOCK = 1 << 17
"""Elements computed at a time: the scratch of a few sources then stays in a core's cache."""

_FP16_MAX = 65504.0


def execute(plan: MergePlan, pool: ModelPool, *, block: int = BLOCK) -> Iterator[tuple[str, torch.Tensor]]:
    """Merge tensor by tensor.

    Args:
        plan: what to compute.
        pool: the models that the plan names.
        block: elements computed at a time.

    Yields:
        Names and new tensors on the CPU, in the plan's order, shapes and dtypes.
    """
    for tensor in plan.tensors:
        result = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
        _write(tensor, pool, result, block)
        yield tensor.name, result


def execute_into(
    plan: MergePlan,
    pool: ModelPool,
    outputs: Mapping[str, torch.Tensor],
    only: Collection[str] | None = None,
    *,
    block: int = BLOCK,
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
        block: elements computed at a time.

    Raises:
        MergeError: an output is missing or has another shape; nothing is written then.
    """
    tensors = [tensor for tensor in plan.tensors if only is None or tensor.name in only]
    _check(tensors, outputs)
    for tensor in tensors:
        _write(tensor, pool, outputs[tensor.name], block)


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
def _write(tensor: TensorPlan, pool: ModelPool, out: torch.Tensor, block: int) -> None:
    if isinstance(tensor.kernel, Copy):
        _store(pool.tensor(tensor.kernel.source, tensor.name), out, tensor.dtype)
        return
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype)
    inputs = {source: pool.tensor(source, tensor.name).reshape(-1) for source in tensor.sources}
    whole = kernels.Block(
        start=0,
        inputs=inputs,
        scratch=torch.empty(2 * len(inputs) + 2, min(block, len(flat))),
        facts=facts_of(tensor, pool),
    )
    if isinstance(tensor.kernel, Vote):
        _elect(tensor.kernel, whole, flat, tensor.dtype)
    else:
        _sweep(partial(_COMPUTE[type(tensor.kernel)], tensor.kernel), whole, flat, tensor.dtype)
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


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
        block = replace(whole, start=start, inputs=here, scratch=whole.scratch[:, : len(out)])
        _store(compute(block), out, dtype)


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
