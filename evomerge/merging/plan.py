"""Merge plans: what to compute for every tensor, as plain data.

A plan is a recipe brought down to numbers: for each tensor one kernel with its sources, coefficients, thresholds and
seeds. Any executor may run it. Knows neither operators nor where weights are stored, and needs no torch.

Legend: `theta_k` weights of source k, `theta_0` of the base, `x_k = theta_k - theta_0` formed in fp32.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from evomerge.merging.factors import Factors
from evomerge.merging.keep_rules import Keep, Trim

__all__ = [
    "Consensus",
    "Copy",
    "Core",
    "Damping",
    "Delta",
    "Isotropic",
    "Kernel",
    "Linear",
    "MergePlan",
    "Overlap",
    "Score",
    "TensorPlan",
    "Term",
    "Vote",
    "Winner",
    "Zero",
]

Score = Literal["magnitude", "rank"]
"""By what sources compete for an element: the magnitude of their ballots, or its rank in their own tensors."""

Zero = Literal["plus", "majority"]
"""Sign elected where the ballots cancel exactly: always +, or the sign that most elements of the tensor elected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One source of a sum, `weight * factors * keep(x)`; without factors or a rule of what to keep, `weight * x`."""

    source: str
    weight: float
    keep: Keep | None = None
    factors: Factors | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """The source's own values, byte for byte when dtypes agree."""

    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """`sum_k weight_k factors_k theta_k / divisor`; zero when there are no terms."""

    terms: tuple[Term, ...]
    divisor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """`theta_0 + scale * sum_k weight_k factors_k keep_k(x_k) / divisor`."""

    base: str
    terms: tuple[Term, ...]
    divisor: float
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Vote:
    """A sign election per element, then a merge of those who agree with it.

    With ballots `y_k = weight_k keep_k(x_k)`: elect `s = sign(sum_k y_k)` and let A hold the sources whose ballot has
    that sign; the result is `theta_0 + scale * sum_A gain_k y_k / sum_A share_k`, where a divisor of exactly zero
    counts as one (so shares of zero make it a sum). Ballots are multiplied and added in fp32, in the order of the
    terms: an election is a decision, so its arithmetic is part of its meaning.

    Attributes:
        terms: two or more; their weights are those of the ballots.
        gains: what each agreeing source's ballot is multiplied with; never negative.
        shares: what each agreeing source adds to the divisor.
        zero: what is elected where the ballots cancel.
        select: only elements whose variance over the ballots this keeps take part; None takes all.
        floor: smallest divisor; 0 for none.
    """

    base: str
    terms: tuple[Term, ...]
    gains: tuple[float, ...]
    shares: tuple[float, ...]
    zero: Zero
    scale: float
    select: Trim | None = None
    floor: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Consensus:
    """A sum of task vectors where enough sources matter to it.

    With ballots `y_k = weight_k x_k` and their sum `y`: source k matters where `|y_k| > cut_k |y - y_k|`; the result
    is `theta_0 + scale * y` where at least `least` sources matter, else `theta_0`. All of it is decided in fp32.

    Attributes:
        terms: one or more, keeping everything.
        cuts: one per term.
    """

    base: str
    terms: tuple[Term, ...]
    cuts: tuple[float, ...]
    least: float
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Winner:
    """One source per element: `theta_0 + scale * y_w` with ballots `y_k = weight_k keep_k(x_k)`.

    The winner w has the highest score, of equal ones the first. By `magnitude`, the score is `|y_k|`; by `rank`, it is
    the level of `|x_k|` in its own tensor (see `evomerge.merging.ranks`), and a ballot of zero has no score.
    """

    base: str
    terms: tuple[Term, ...]
    by: Score
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Sum what one source alone changed, average what several did.

    Source k is active where `|x_k| > epsilon`. Where it alone is: `theta_0 + gain_k x_k`; where several are: `theta_0`
    plus the mean of theirs; elsewhere `theta_0`.

    Attributes:
        terms: one or more, of weight 1, keeping everything.
        epsilon: an fp32 value.
        gains: one per term.
    """

    base: str
    terms: tuple[Term, ...]
    epsilon: float
    gains: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Isotropic:
    """A sum of task vectors whose singular values are all set to their mean.

    With `sum_k weight_k x_k = U S V^T`, matrix by matrix along leading axes: `theta_0 + scale * mean(S) * U V^T`. See
    `evomerge.merging.matrices` for the singular values that count as zero.

    Attributes:
        terms: one or more, keeping everything.
    """

    base: str
    terms: tuple[Term, ...]
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """A merge of low-rank changes in the coordinates that they share: `theta_0 + U M V^T`.

    Attributes:
        base: the base of the pool.
        sources: the adapters that span the coordinates (see `evomerge.merging.core`).
        inner: what makes M of the adapters' coordinates, on a base of zero.
    """

    base: str
    sources: tuple[str, ...]
    inner: Kernel


Kernel = Copy | Linear | Delta | Vote | Consensus | Winner | Overlap | Isotropic | Core


@dataclass(frozen=True, kw_only=True, slots=True)
class Damping:
    """A share of each change: `theta_0 + factors * (merged - theta_0)`."""

    base: str
    factors: Factors


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """One tensor of the merged model: `gain * damped(kernel) + shift`.

    Attributes:
        name: in the merged model.
        dtype: of the result, torch's name without `torch.`.
        kernel: how to compute it.
        damping: what is done to the kernel's result; None for nothing.
        origin: name of the pool's tensor that is read, where a path moved its layer; the tensor's own if left out.
        gain, shift: applied in fp32 before the one rounding.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kernel: Kernel
    damping: Damping | None = None
    origin: str = ""
    gain: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not self.origin:
            object.__setattr__(self, "origin", self.name)

    @property
    def is_amplified(self) -> bool:
        """Whether gain or shift change anything."""
        return self.gain != 1.0 or self.shift != 0.0

    @property
    def sources(self) -> tuple[str, ...]:
        """Pool names of the models that are read, the base first."""
        damped = () if self.damping is None else (self.damping.base,)
        return tuple(dict.fromkeys(damped + _sources(self.kernel)))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits; from one pool, equal digests mean equal bytes."""
        return hashlib.blake2b(repr(self).encode(), digest_size=16).hexdigest()


def _sources(kernel: Kernel) -> tuple[str, ...]:
    if isinstance(kernel, Copy):
        return (kernel.source,)
    if isinstance(kernel, Core):
        return (kernel.base, *kernel.sources)
    base = () if isinstance(kernel, Linear) else (kernel.base,)
    return base + tuple(term.source for term in kernel.terms)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergePlan:
    """All tensors of the merged model, in the pool's order."""

    tensors: tuple[TensorPlan, ...]

    def changed(self, previous: MergePlan | None) -> frozenset[str]:
        """Names of the tensors whose content differs from what a previous plan made from the same pool.

        Args:
            previous: the plan that was executed last; None when there is none, and then every name is returned.
        """
        before = {} if previous is None else {tensor.name: tensor for tensor in previous.tensors}
        return frozenset(tensor.name for tensor in self.tensors if before.get(tensor.name) != tensor)
