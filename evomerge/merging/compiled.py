"""One pass per block: the kernels of plans compiled, where a process makes enough of them to pay for it.

A compiled kernel serves all plans of its form: only the kind of kernel, of keep rule and of dtypes and the number of
sources are compiled in. Forms that are not compiled, and machines that cannot compile, are left to the executor's own
kernels, which give the same numbers.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, final

import torch

from evomerge.merging import expressions
from evomerge.merging.expressions import RULE, WEIGHT
from evomerge.merging.keep_rules import Band, Clip, Drop, Prune, Trim
from evomerge.merging.operands import Form, Operands
from evomerge.merging.plan import Consensus, Delta, Linear, Overlap, Vote, Winner

__all__ = ["BLOCK", "COMPILER", "PAYS_FROM", "Compiler", "missing"]

BLOCK = 1 << 20
"""Elements per call; even, as masks need it. Calls cost 30 microseconds."""

PAYS_FROM = 1 << 30
"""Elements that a process computes in one form before that form is compiled.

Compiling takes 10 to 20 CPU seconds for the first form and 1 to 2 for each further one (2 in all where an earlier
process did it); it saves 0.1 (linear) to 0.6 (votes) seconds per 2^27 elements. So small models and single exports are
never compiled for, and a search of 135M weights is from its ninth candidate on.
"""

_LOG = logging.getLogger(__name__)
Call = Callable[..., torch.Tensor | None]
Rows = Sequence[torch.Tensor]


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


def _inductor(function: Call) -> Call:
    return torch.compile(function, fullgraph=True, options=_OPTIONS)


@final
@dataclass(kw_only=True)
class Compiler:
    """Kernels of one process, compiled when they pay.

    Attributes:
        pays_from: elements of one form after which it is compiled.
        compile: makes one pass of an expression.
        broken: why compiling was given up; empty while it was not.
    """

    pays_from: float = PAYS_FROM
    compile: Callable[[Call], Call] = _inductor
    broken: str = ""
    _seen: Counter[Form] = field(default_factory=Counter)
    _calls: dict[Form, Call] = field(default_factory=dict)

    def run(self, operands: Operands | None, out: torch.Tensor) -> bool:
        """Compute a whole tensor, if it can be done and pays.

        Args:
            operands: what is computed; None if no form fits.
            out: where to, `[n]`, of any device and dtype; what it holds is undefined if this fails.

        Returns:
            Whether it was done.
        """
        if operands is None or self.broken or len(out) < 2 or not self._pays(operands.form, len(out)):
            return False
        try:
            self._sweep(operands, out)
        except Exception as error:
            self.broken = f"{type(error).__name__}: {error}".splitlines()[0]
            _LOG.warning("merge kernels are not compiled, merging is slower: %s", self.broken)
        return not self.broken

    def _pays(self, form: Form, count: int) -> bool:
        if form in self._calls:
            return True
        self._seen[form] += count
        if self._seen[form] < self.pays_from:
            return False
        if form.device == "cpu" and (fault := missing()):
            self.broken = fault
            return False
        return True

    def _sweep(self, operands: Operands, out: torch.Tensor) -> None:
        """All blocks; of a vote that turns out to have a negative majority, those again where ballots cancelled."""
        starts = range(0, len(out), BLOCK)
        tallies = [self._block(operands, start, out) for start in starts]
        if not operands.form.tallied:
            return
        sums = torch.stack([tally for tally in tallies if tally is not None]).double()
        if float(sums[:, 0].sum()) < 0:
            minus = operands.electing_minus()
            for start, cancelled in zip(starts, sums[:, 1].tolist(), strict=True):
                if cancelled:
                    self._block(minus, start, out)

    def _block(self, operands: Operands, start: int, out: torch.Tensor) -> torch.Tensor | None:
        part, form, device = out[start : start + BLOCK], operands.form, operands.values[0].device
        direct = part.dtype == form.dtype and part.device == device
        result = part if direct else torch.empty(len(part), dtype=form.dtype, device=device)
        arguments = (result, *operands.within(start, len(part)))
        tally = self._compiled(form, arguments)(*arguments)
        if not direct:
            part.copy_(result)
        return tally

    def _compiled(self, form: Form, arguments: tuple[Any, ...]) -> Call:
        """The kernel of a form; the first time, compiled by a call."""
        if form not in self._calls:
            out, _, _, values, tables, _ = arguments
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # importing the compiler warns of its own doings
                call = self.compile(_function(form))
                for tensor in (out, *values, *(tables if form.by_row else ())):
                    torch._dynamo.mark_dynamic(tensor, 0)
                call(*arguments)
            self._calls[form] = call
        return self._calls[form]


COMPILER = Compiler()
"""The one that all merges of a process share."""

_KERNELS: Mapping[type, Callable[..., Any]] = {
    Delta: expressions.delta,
    Vote: expressions.vote,
    Consensus: expressions.consensus,
    Winner: expressions.winner,
    Overlap: expressions.overlap,
}
_RULES: Mapping[type | None, Callable[..., torch.Tensor]] = {
    Trim: expressions.trimmed,
    Band: expressions.banded,
    Clip: expressions.clipped,
    Drop: expressions.dropped,
}


def _function(form: Form) -> Call:
    """All of a form as one expression, written to its first argument."""
    merge, keep, tallied = _KERNELS.get(form.kernel, expressions.delta), _RULES.get(form.rule), form.tallied
    pruned, by_row = form.rule is Prune, form.by_row

    def linear(out: torch.Tensor, numbers: torch.Tensor, _: torch.Tensor, values: Rows, *_none: Rows) -> None:
        out.copy_(expressions.rounded(expressions.linear(values, numbers), out.dtype))

    def compete(  # noqa: PLR0917 - as many kinds of arguments there are
        out: torch.Tensor, numbers: torch.Tensor, words: torch.Tensor, values: Rows, tables: Rows, by_level: Rows
    ) -> torch.Tensor | None:
        base, ballots = values[0].float(), []
        index = torch.arange(out.shape[0], device=out.device)
        for k, theta in enumerate(values[1:]):
            x = theta.float() - base
            if pruned:
                levels = tables[k] if by_row else expressions.levels(tables[k], x)
                x = expressions.pruned(x, levels, [rows[k] for rows in by_level], words[k], index)
            elif keep is not None:
                x = keep(x, numbers[k, RULE:], words[k], index)
            ballots.append(numbers[k, WEIGHT] * x)
        merged = merge(base, ballots, numbers)
        tally = None
        if tallied:
            tally = expressions.tally(ballots)
        out.copy_(expressions.rounded(merged, out.dtype))
        return tally

    found = linear if form.kernel is Linear else compete
    # a code object of its own: how often one is compiled anew is counted and limited
    return FunctionType(found.__code__.replace(), globals(), closure=found.__closure__)
