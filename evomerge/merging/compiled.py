"""One pass per block: the kernels of plans compiled, where a process makes enough of them to pay for it.

A compiled kernel serves all plans of its form: only the kind of kernel, of keep rule and of dtypes and the number of
sources are compiled in. Forms that are not compiled, and machines that cannot compile, are left to those who ask; what
they compute themselves are the same numbers.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar, final

import torch

from evomerge.merging.expressions import EXTRA
from evomerge.merging.fused import fused
from evomerge.merging.operands import Form, Operands
from evomerge.merging.plan import Delta, Linear

__all__ = ["BLOCK", "COMPILER", "LEAST", "PAYS_FROM", "Compiler", "missing"]

BLOCK = 1 << 20
"""Most elements of a call. Calls cost 40 microseconds; sums over no more elements are exact (see `kept_l1`)."""

LEAST = 1 << 13
"""Elements of a tensor below which nothing is gained; of very short runs, compilers would also make other code."""

PAYS_FROM = 1 << 31
"""Elements that a process computes in one form before that form is compiled; of sums, `_SUMS_PAY_LATER` times as many.

Compiling takes 10 to 20 CPU seconds for the first form and 1 to 2 for each further one (2 in all where an earlier
process did it); it saves 0.1 (sums) to 0.4 and more (votes) seconds per 2^27 elements. So it begins when not having
compiled has cost about as much as compiling does: not for small models and single exports of up to 2 (sums: 8) billion
weights, and in a search of 135M weights from the 16th (sums: 64th) candidate on.
"""

_SUMS_PAY_LATER = 4
"""How much less compiling saves of plain weighted sums, `Linear` and `Delta` without masks, than of votes."""

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
Call = Callable[..., Any]


def missing() -> str:
    """Why nothing can be compiled for the CPU here; empty if nothing is known to be missing."""
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"no C++ compiler ({compiler})"


_NEVER = 1 << 30
_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "compile_threads": 1,  # in this process: no helper processes stay behind
    # one loop without intermediate results in memory: its vectors are then as wide as the stored dtype allows
    "realize_opcount_threshold": _NEVER,
    "realize_reads_threshold": _NEVER,
    "realize_acc_reads_threshold": _NEVER,
}


_GPU_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "emulate_precision_casts": True,  # also turns off the fusion of products and sums
    "eager_numerics.division_rounding": True,
    "eager_numerics.disable_ftz": True,
}
"""For the numbers of uncompiled kernels; written for CUDA, and never run on one."""


_CONTRACTED = {"cpp.enable_floating_point_contract_flag": "fast"}
"""Products are added with one rounding: for linear merges, whose uncompiled kernel does so too."""


def _inductor(function: Call, contracted: bool) -> Call:
    options = _OPTIONS | (_GPU_OPTIONS if torch.cuda.is_available() else {}) | (_CONTRACTED if contracted else {})
    return torch.compile(function, fullgraph=True, options=options)


class _Spares(threading.local):
    """Memory that the calls of a thread compute in, by what it is for."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}


@final
@dataclass(kw_only=True)
class Compiler:
    """Kernels of one process, compiled when they pay.

    Attributes:
        pays_from: elements of one form after which it is compiled; of sums, `_SUMS_PAY_LATER` times as many.
        compile: makes one pass of an expression.
        broken: why compiling was given up; empty while it was not.
    """

    pays_from: float = PAYS_FROM
    compile: Callable[[Call, bool], Call] = _inductor
    broken: str = ""
    _seen: Counter[Form] = field(default_factory=Counter)
    _calls: dict[Form, Call] = field(default_factory=dict)
    _majorities: dict[str, float] = field(default_factory=dict)
    _spares: _Spares = field(default_factory=_Spares)

    def run(self, operands: Operands | None, out: torch.Tensor) -> bool:
        """Compute a whole tensor, if it can be done and pays.

        Args:
            operands: what is computed; None if no form fits.
            out: where to, `[n]`, of any device and dtype; what it holds is undefined if this fails.

        Returns:
            Whether it was done.
        """
        return self._attempt(operands, partial(self._sweep, out=out)) is not None

    def sums(self, operands: Operands) -> list[float] | None:
        """Sums over a whole tensor, one for each source; None if it cannot be done or does not pay."""
        return self._attempt(operands, self._totals)

    def _attempt(self, operands: Operands | None, work: Callable[[Operands], T]) -> T | None:
        if operands is None or self.broken or operands.count < LEAST or not self._pays(operands):
            return None
        try:
            return work(operands)
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error}".splitlines()[0]
            _LOG.warning("merge kernels are not compiled, merging is slower: %s", self.broken)
            return None

    def _pays(self, operands: Operands) -> bool:
        form = operands.form
        if form in self._calls:
            return True
        self._seen[form] += operands.count
        if self._seen[form] < self.pays_from * (_SUMS_PAY_LATER if _is_plain_sum(form) else 1):
            return False
        if form.device == "cpu" and (fault := missing()):
            self.broken = fault
            return False
        return True

    def _sweep(self, operands: Operands, out: torch.Tensor) -> Literal[True]:
        """All blocks."""
        if operands.form.tallied:
            self._elect(operands, out)
        else:
            for block in _blocks(operands.count):
                self._block(operands, *block, out)
        return True

    def _elect(self, operands: Operands, out: torch.Tensor) -> None:
        """A vote under the majority that the tensor's last one had; again if it has changed."""
        guess = self._majorities.get(operands.tensor, 1.0)
        majority = self._vote(operands, out, guess)
        if majority != guess:
            self._majorities[operands.tensor] = majority
            self._vote(operands, out, majority)

    def _vote(self, operands: Operands, out: torch.Tensor, majority: float) -> float:
        """All blocks of a vote that elects `majority`, 1 or -1, where ballots cancel; what the majority elected."""
        blocks, device = _blocks(operands.count), operands.values[0].device
        elected = self._spare("elected", blocks[0][1], torch.bfloat16, device)
        numbers, sums = operands.numbers.clone(), []
        numbers[-1, EXTRA] = majority
        told = replace(operands, numbers=numbers)
        for start, count in blocks:
            self._block(told, start, count, out, elected[:count])
            sums.append(elected[:count].sum(dtype=torch.float32))  # exact: of no more elements than fp32 counts
        return 1.0 if float(torch.stack(sums).double().sum()) >= 0 else -1.0

    def _block(self, operands: Operands, start: int, count: int, out: torch.Tensor, *others: torch.Tensor) -> None:
        """Compute a run of elements, and what else the kernel gives of it."""
        part, dtype, device = out[start : start + count], operands.form.dtype, operands.values[0].device
        direct = part.dtype == dtype and part.device == device
        result = part if direct else torch.empty(count, dtype=dtype, device=device)
        self._call(operands, start, count, result, *others)
        if not direct:
            part.copy_(result)

    def _spare(self, name: str, count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for a call to compute in: the first touch of new pages costs more than a pass."""
        key, kept = (name, dtype, device), self._spares.kept
        if key not in kept or len(kept[key]) < count:
            with torch.inference_mode(mode=False):  # all of one kind: kernels are compiled for it
                kept[key] = torch.empty(count, dtype=dtype, device=device)
        return kept[key][:count]

    def _totals(self, operands: Operands) -> list[float]:
        sums = [self._call(operands, *block) for block in _blocks(operands.count)]
        return [math.fsum(parts) for parts in torch.stack(sums).t().tolist()]

    def _call(self, operands: Operands, start: int, count: int, *outs: torch.Tensor) -> Any:
        """Call a form's kernel; the first time, that compiles it."""
        form, arguments = operands.form, (outs, *operands.within(start, count))
        if form in self._calls:
            return self._calls[form](*arguments)
        _, _, _, values, needs = arguments
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing the compiler warns of its own doings
            call = self.compile(fused(form), form.kernel is Linear)
            runs = [tensor for need in needs for tensor in (need if form.by_row else need[:2])]
            for tensor in (*outs, *values, *runs):
                torch._dynamo.mark_dynamic(tensor, 0)
            found = call(*arguments)
        self._calls[form] = call
        return found


def _is_plain_sum(form: Form) -> bool:
    return form.kernel in (Linear, Delta) and form.rule is None


def _blocks(count: int) -> list[tuple[int, int]]:
    """Runs of about equal length, so that none is short."""
    length = -(-count // -(-count // BLOCK))
    return [(start, min(length, count - start)) for start in range(0, count, length)]


COMPILER = Compiler()
"""The one that all merges of a process share."""
