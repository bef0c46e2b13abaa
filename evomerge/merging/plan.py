"""Merge plans: what to compute for every tensor, as plain data.

A plan is a recipe brought down to numbers: for each tensor one kernel with its sources, coefficients, thresholds and
seeds. Any executor may run it. Knows neither operators nor where weights are stored, and needs no torch.

Legend: `theta_k` weights of source k, `theta_0` of the base, `x_k = theta_k - theta_0` formed in fp32.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

__all__ = ["Copy", "Delta", "Drop", "Kernel", "Linear", "MergePlan", "TensorPlan", "Term", "Trim", "Vote", "Zero"]

Zero = Literal["plus", "majority"]
"""Sign elected where the ballots cancel exactly: always +, or the sign that most elements of the tensor elected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trim:
    """Keep the largest magnitudes.

    Attributes:
        threshold: smallest magnitude kept, an fp32 value.
        last_tie: index of the last element that is kept among those whose magnitude equals the threshold.
    """

    threshold: float
    last_tie: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """Keep elements at random.

    Attributes:
        seed: of the mask, see `evomerge.merging.masks`.
        density: probability of being kept.
    """

    seed: int
    density: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One source of a sum, `weight * keep(x)`; `keep=None` keeps everything."""

    source: str
    weight: float
    keep: Trim | Drop | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """The source's own values, byte for byte when dtypes agree."""

    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """`sum_k weight_k theta_k / divisor`; zero when there are no terms."""

    terms: tuple[Term, ...]
    divisor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """`theta_0 + scale * sum_k weight_k keep_k(x_k) / divisor`."""

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
    """

    base: str
    terms: tuple[Term, ...]
    gains: tuple[float, ...]
    shares: tuple[float, ...]
    zero: Zero
    scale: float


Kernel = Copy | Linear | Delta | Vote


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """One tensor of the merged model.

    Attributes:
        dtype: of the result, torch's name without `torch.`.
        kernel: how to compute it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kernel: Kernel

    @property
    def sources(self) -> tuple[str, ...]:
        """Pool names of the models that are read, the base first."""
        kernel = self.kernel
        if isinstance(kernel, Copy):
            return (kernel.source,)
        base = () if isinstance(kernel, Linear) else (kernel.base,)
        return base + tuple(term.source for term in kernel.terms)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits; from one pool, equal digests mean equal bytes."""
        return hashlib.blake2b(repr(self).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class MergePlan:
    """All tensors of the merged model, in the pool's order."""

    tensors: tuple[TensorPlan, ...]

    def changed(self, previous: MergePlan | None) -> frozenset[str]:
        """Names of the tensors whose content differs from what a previous plan made from the same pool.

        Args:
            previous: the plan that was executed last; None when there is none, and then every name is returned.
        """
        before = () if previous is None else previous.tensors
        return frozenset(tensor.name for tensor in set(self.tensors).difference(before))
