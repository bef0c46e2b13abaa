"""Core space: the changes of a pool's LoRA adapters in the few coordinates that they share (Panariello et al. 2025).

All adapters change one weight within the span of their factors. With singular value decompositions
`[B_1 .. B_K] = U S_B W_B^T` and `[A_1; ..; A_K] = W_A S_A V^T`, the change of adapter k is `U M_k V^T`,
`M_k = s_k U^T B_k A_k V` of at most `sum r_k` rows and columns. Any operator may merge the `M_k`, on a base of zero;
`theta_0 + U M V^T` is the result, and a low-rank one. Sums of task vectors come out the same either way.

Kept are `S` and `W` of each side, a few small matrices per weight; U and V follow from the adapters' own factors. Knows
nothing of operators or recipes.

Legend: `r_k` rank, `s_k` scale, `B_k` and `A_k` factors of adapter k; p and q ranks of all B and of all A.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, cast, final

import torch

from evomerge.merging import prepared
from evomerge.merging.lora import Adapter, adapters_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from evomerge.merging.checkpoint import Model
    from evomerge.merging.pool import ModelPool, TensorSpec

__all__ = ["CoreSpace", "Side", "Span", "core_space"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """Factors side by side, `[F_1 .. F_K] = U S W^T`, without U.

    Attributes:
        singular: S `[p]`, fp64.
        mixing: W `[sum r_k, p]`, fp64.
    """

    singular: torch.Tensor
    mixing: torch.Tensor

    def basis(self, factors: torch.Tensor) -> torch.Tensor:
        """U `[n, p]`, from the factors that this was made of."""
        return factors @ (self.mixing / self.singular)

    def coordinates(self, columns: slice) -> torch.Tensor:
        """`U^T F_k` `[p, r_k]` for the factor that holds some columns."""
        return (self.mixing[columns] * self.singular).T


@final
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Span:
    """The coordinates of one weight.

    Attributes:
        name: the weight.
        members: the adapters that change it.
        columns: for each of them, the columns of its factors among all.
        rows, widths: U and V.
    """

    name: str
    members: Mapping[str, Adapter]
    columns: Mapping[str, slice]
    rows: Side
    widths: Side

    @property
    def shape(self) -> tuple[int, int]:
        """`(p, q)`."""
        return len(self.rows.singular), len(self.widths.singular)

    def coordinates(self, model: str) -> torch.Tensor:
        """`M_k`, fp32 `[p, q]`; zero for the base, and for an adapter that does not change this weight."""
        if model not in self.members:
            return torch.zeros(self.shape)
        left, right = (side.coordinates(self.columns[model]) for side in (self.rows, self.widths))
        return (self.members[model].factors[self.name].scale * left @ right.T).float()

    def factors(self, merged: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`U M` `[rows, q]` and `V^T` `[q, columns]`, fp32, of a merged M `[p, q]`."""
        lefts, rights = _side_by_side(self.name, list(self.members.values()))
        return (self.rows.basis(lefts) @ merged.double()).float(), self.widths.basis(rights).T.float()


@final
@dataclass(frozen=True, slots=True, eq=False)
class CoreSpace:
    """The coordinates that some adapters of a pool share.

    Attributes:
        pool: the weights that any of them changes, as a pool: low-rank changes as `M_k` on a base of zero; weights that
            an adapter stores whole as they are.
        spans: by weight, for all that have only low-rank changes.
    """

    pool: ModelPool
    spans: Mapping[str, Span]


def core_space(pool: ModelPool, sources: tuple[str, ...]) -> CoreSpace:
    """The core space of some adapters, made once per pool.

    Raises:
        PoolError: a source is no LoRA adapter.
    """
    known = _known(pool.digest)
    if sources not in known:
        known[sources] = _core_space(pool, sources)
    return known[sources]


@lru_cache(maxsize=1)
def _known(digest: str) -> dict[tuple[str, ...], CoreSpace]:
    return {}


def _core_space(pool: ModelPool, sources: tuple[str, ...]) -> CoreSpace:
    adapters = adapters_of(pool.models, sources)
    whole = {name for adapter in adapters.values() for name in adapter.whole}
    found = {spec.name: _span(pool, spec.name, adapters) for spec in pool.specs if spec.name not in whole}
    spans = {name: span for name, span in found.items() if span is not None}
    models = {name: cast("Model", _Seen(pool.models[name], name, spans)) for name in (pool.base, *sources)}
    origin = "\x1f".join(["core space", *(pool.contents[name] for name in models)])
    seen = replace(
        pool,
        models=models,  # all that merging reads of a model are its tensors
        specs=tuple(_seen(spec, spans) for spec in pool.specs if spec.name in spans or spec.name in whole),
        carried=(),
        digest=_hash(f"{origin}\x1f{pool.digest}"),
        contents={name: _hash(f"{origin}\x1f{pool.contents[name]}") for name in models},
    )
    return CoreSpace(seen, spans)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _span(pool: ModelPool, name: str, adapters: Mapping[str, Adapter]) -> Span | None:
    """None where no adapter changes the weight."""
    members = {source: adapter for source, adapter in adapters.items() if name in adapter.factors}
    if not members:
        return None
    found = prepared.arrays(
        pool, "core space", (pool.base, *members), (name,), lambda: _decomposed(name, list(members.values()))
    )
    rows, widths = (Side(*map(torch.from_numpy, found[at : at + 2])) for at in (0, 2))
    columns, start = {}, 0
    for source, adapter in members.items():
        columns[source] = slice(start, start := start + adapter.factors[name].rank)
    span = Span(name=name, members=members, columns=columns, rows=rows, widths=widths)
    return span if all(span.shape) else None


def _decomposed(name: str, adapters: Sequence[Adapter]) -> tuple[npt.NDArray[np.float64], ...]:
    """S and W of the left factors, then of the right ones, without directions that are nothing but rounding."""
    arrays = []
    for factors in _side_by_side(name, adapters):
        _, singular, mixing = torch.linalg.svd(factors, full_matrices=False)
        rank = int((singular > max(factors.shape) * 2.0**-52 * singular[0]).sum())
        arrays += [singular[:rank].numpy(), mixing[:rank].T.contiguous().numpy()]
    return tuple(arrays)


def _side_by_side(name: str, adapters: Sequence[Adapter]) -> tuple[torch.Tensor, torch.Tensor]:
    """All left factors `[rows, sum r_k]` and all right ones `[columns, sum r_k]`, fp64."""
    sides = [adapter.sides(name) for adapter in adapters]
    return torch.cat([left for left, _ in sides], 1).double(), torch.cat([right.T for _, right in sides], 1).double()


def _seen(spec: TensorSpec, spans: Mapping[str, Span]) -> TensorSpec:
    return replace(spec, shape=spans[spec.name].shape, dtype="float32") if spec.name in spans else spec


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """A model in core space."""

    model: Model
    name: str
    spans: Mapping[str, Span]

    def tensor(self, name: str) -> torch.Tensor:
        """Coordinates where there are any, else the weight."""
        return self.spans[name].coordinates(self.name) if name in self.spans else self.model.tensor(name)
