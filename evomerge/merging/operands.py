"""What compiled kernels are called with: the numbers of one tensor's plan, laid out as `expressions` reads them.

Knows nothing of how or whether anything is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from evomerge.merging import masks
from evomerge.merging.expressions import DIVISOR, EXTRA, FLOOR, GAIN, SHARE
from evomerge.merging.keep_rules import Band, Clip, Drop, Keep, Prune, Trim
from evomerge.merging.plan import Consensus, Delta, Linear, Overlap, TensorPlan, Vote, Winner

__all__ = ["Form", "KeptL1", "Operands", "operands_of", "summands_of"]

_INT32 = 2**31 - 1


class KeptL1:
    """Stands for a kernel in the form of sums: of the magnitudes that masks keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What is compiled into a kernel; two plans of one form differ in numbers only.

    Attributes:
        kernel: of the plan; or `KeptL1`.
        rule: that every source's own rule is a case of; None where all is kept.
        by_row: whether a `Prune` ranks by row.
        inverse: whether it multiplies with inverse probabilities.
        sources: number of terms.
        tallied: whether a vote also tells what the ballots elected.
        stored: dtypes of the inputs, the base first.
        dtype: of the result.
        device: type of the device.
    """

    kernel: type
    rule: type | None
    by_row: bool
    inverse: bool
    sources: int
    tallied: bool
    stored: tuple[torch.dtype, ...]
    dtype: torch.dtype
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Operands:
    """One tensor's plan and inputs.

    Attributes:
        tensor: its name; empty where none is written.
        form: the kernel to call.
        values: inputs `[n]`, the base first if there is one.
        numbers: see `evomerge.merging.expressions`; a tallied vote's `EXTRA` is left to whoever knows the majority.
        keeps: the rule of each source.
        tables: of levels, uint8; one for each source if some are pruned, else none.
    """

    tensor: str = ""
    form: Form
    values: tuple[torch.Tensor, ...]
    numbers: torch.Tensor
    keeps: tuple[Keep | None, ...]
    tables: tuple[torch.Tensor, ...]

    @property
    def count(self) -> int:
        """Elements of the tensor."""
        return len(self.values[0])

    def within(self, start: int, count: int) -> tuple[Any, ...]:
        """Arguments for the elements `start .. start + count - 1`.

        Returns:
            Numbers; last ties; values; of each source nothing, or the windows of its draws, or those and its levels.
        """
        part = slice(start, start + count)
        device = self.values[0].device
        ties = torch.tensor([_ties(keep, start) for keep in self.keeps]).to(device)
        needs: list[tuple[torch.Tensor, ...]] = [()] * len(self.keeps)
        if self.form.rule in (Drop, Prune):
            needs = [masks.windows(getattr(keep, "seed", 0), start, count, device) for keep in self.keeps]
        if self.form.rule is Prune:
            tables = [table[part] if self.form.by_row else table for table in self.tables]
            needs = [(*windows, table) for windows, table in zip(needs, tables, strict=True)]
        return self.numbers, ties, tuple(values[part] for values in self.values), needs


def operands_of(
    tensor: TensorPlan, inputs: Mapping[str, torch.Tensor], facts: Mapping[str, torch.Tensor]
) -> Operands | None:
    """Lay out one tensor's plan.

    Args:
        tensor: the plan.
        inputs: stored values by source, each `[n]`, all on one device.
        facts: by source (see `evomerge.merging.facts`).

    Returns:
        None where a plan asks for what is not compiled: damping, gains, factors, rules that do not mix, int8 inputs.
    """
    kernel = tensor.kernel
    if not isinstance(kernel, Linear | Delta | Vote | Consensus | Winner | Overlap):
        return None
    if tensor.damping is not None or tensor.is_amplified:
        return None
    keeps = tuple(term.keep for term in kernel.terms)
    if _joined(keeps) is _MIXED or not kernel.terms or not _plain(kernel):
        return None
    names = [term.source for term in kernel.terms]
    values = tuple(inputs[name] for name in (names if isinstance(kernel, Linear) else [kernel.base, *names]))
    if not all(isinstance(value, torch.Tensor) for value in values):
        return None
    tallied = isinstance(kernel, Vote) and kernel.zero == "majority"
    form = _form(type(kernel), keeps, values, getattr(torch, tensor.dtype), tallied=tallied)
    tables = _tables(form, [facts.get(name) for name in names], values[0])
    numbers = torch.tensor(_numbers(kernel, form.rule), dtype=torch.float32).to(values[0].device)
    return Operands(tensor=tensor.name, form=form, values=values, numbers=numbers, keeps=keeps, tables=tables)


def summands_of(
    values: Sequence[torch.Tensor],
    rules: Sequence[Drop | Prune],
    grids: Sequence[float],
    tables: Sequence[torch.Tensor | None],
) -> Operands:
    """Lay out the sums of the magnitudes that masks keep.

    Args:
        values: stored values `[n]`, the base first.
        rules: of each source, all of one kind.
        grids: of each source, see `expressions.on_grid`.
        tables: of levels, for rules that need them.
    """
    form = _form(KeptL1, rules, values, torch.float64)
    rows = [[1.0, grid, 1.0, *_limits(rule, form.rule)] for rule, grid in zip(rules, grids, strict=True)]
    numbers = torch.tensor([row + [0.0] * (8 - len(row)) for row in [*rows, []]], dtype=torch.float32)
    return Operands(
        form=form,
        values=tuple(values),
        numbers=numbers,
        keeps=tuple(rules),
        tables=_tables(form, tables, values[0]),
    )


def _form(
    kernel: type,
    keeps: Sequence[Keep | None],
    values: Sequence[torch.Tensor],
    dtype: torch.dtype,
    *,
    tallied: bool = False,
) -> Form:
    prunes = [keep for keep in keeps if isinstance(keep, Prune)]
    return Form(
        kernel=kernel,
        rule=_joined(keeps),
        by_row=any(prune.ranks == "row" for prune in prunes),
        inverse=any(prune.inverse for prune in prunes),
        sources=len(keeps),
        tallied=tallied,
        stored=tuple(value.dtype for value in values),
        dtype=dtype,
        device=values[0].device.type,
    )


class _Mixed:
    """Stands for rules of which none is a case of another."""


_MIXED: type = _Mixed


def _joined(keeps: Sequence[Keep | None]) -> type | None:
    """The rule that all are cases of; None where none is needed."""
    kinds = {type(keep) for keep in keeps if keep is not None}
    if kinds == {Trim, Band}:
        return Band
    prunes = {(keep.ranks, keep.inverse) for keep in keeps if isinstance(keep, Prune)}
    if len(kinds) > 1 or len(prunes) > 1 or not kinds <= {Trim, Band, Drop, Prune, Clip}:
        return _MIXED
    return kinds.pop() if kinds else None


def _plain(kernel: Linear | Delta | Vote | Consensus | Winner | Overlap) -> bool:
    if isinstance(kernel, Vote) and kernel.select is not None:
        return False
    if isinstance(kernel, Winner) and kernel.by != "magnitude":
        return False
    return all(term.factors is None for term in kernel.terms)


def _numbers(kernel: Linear | Delta | Vote | Consensus | Winner | Overlap, rule: type | None) -> list[list[float]]:
    """`[K + 1, 8]`: a row for each source, then what they share."""
    rows = [[term.weight, 1.0, 1.0, *_limits(term.keep, rule)] for term in kernel.terms]
    shared = [1.0, getattr(kernel, "scale", 1.0), 0.0, -math.inf]
    match kernel:
        case Linear() | Delta():
            shared[DIVISOR] = kernel.divisor
        case Vote():
            shared[FLOOR] = kernel.floor or -math.inf
            for row, gain, share in zip(rows, kernel.gains, kernel.shares, strict=True):
                row[GAIN], row[SHARE] = gain, share
        case Consensus():
            shared[EXTRA] = kernel.least
            for row, cut in zip(rows, kernel.cuts, strict=True):
                row[GAIN] = cut
        case Overlap():
            shared[EXTRA] = kernel.epsilon
            for row, gain in zip(rows, kernel.gains, strict=True):
                row[GAIN] = gain
    return [row + [0.0] * (8 - len(row)) for row in (*rows, shared)]


def _limits(keep: Keep | None, rule: type | None) -> list[float]:
    """Numbers of a source's rule, as a case of the joined one."""
    match keep:
        case Trim() if rule is Band:
            return [*_trim(keep), math.inf, math.inf]
        case Trim():
            return _trim(keep)
        case Band():
            return [*_trim(keep.inner), *_trim(keep.outer)]
        case Clip():
            return [keep.limit]
        case Drop():
            return [masks.limit(keep.density)]
        case Prune():
            return [*masks.ramp(keep.density, keep.epsilon)]
    everything = {
        Trim: [-1.0, -1.0],
        Band: [-1.0, -1.0, math.inf, math.inf],
        Clip: [math.inf],
        Drop: [1.0],
        Prune: [1.0, 0.0],
    }
    return everything.get(rule, []) if rule is not None else []


def _trim(trim: Trim) -> list[float]:
    """The largest magnitudes that are zeroed up to the last tie, and after it."""
    return [float(np.nextafter(np.float32(trim.threshold), np.float32(0))), trim.threshold]


def _ties(keep: Keep | None, start: int) -> tuple[int, int]:
    """Last ties of a source's trims, within a run of elements."""
    match keep:
        case Trim():
            return _tie(keep, start), 0
        case Band():
            return _tie(keep.inner, start), _tie(keep.outer, start)
    return 0, 0


def _tie(trim: Trim, start: int) -> int:
    return min(max(trim.last_tie - start, -1), _INT32)


def _tables(form: Form, known: Sequence[torch.Tensor | None], like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tables of every source; of one that is not pruned, any will do."""
    if form.rule is not Prune:
        return ()
    size = len(like) if form.by_row else 1 << 15
    tables = (torch.zeros(size, dtype=torch.uint8) if table is None else table for table in known)
    return tuple(table.to(like.device) for table in tables)
