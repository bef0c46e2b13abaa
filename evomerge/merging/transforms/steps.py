"""Every transform by name: which tensors it is for, what it does with the others, and which facts it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from evomerge.errors import MergeError
from evomerge.merging.calibrated import MOMENTS_FILE
from evomerge.merging.layout import is_matrix
from evomerge.merging.sparse import is_float
from evomerge.merging.transforms.competition import Competition
from evomerge.merging.transforms.curvature import fisher, ota
from evomerge.merging.transforms.deltas import Deltas, Step, averaged, by_matrix, inputs_first
from evomerge.merging.transforms.facts import Curvature, Facts
from evomerge.merging.transforms.regression import regmean, wudi
from evomerge.merging.transforms.spectral import lore, star, tsv_m

if TYPE_CHECKING:
    from evomerge.merging.pool import ModelPool, TensorSpec

__all__ = ["STEPS"]


def _kept(deltas: Deltas) -> Deltas:
    return deltas


def _none(pool: ModelPool, facts: Facts, number: float) -> Step:
    return lambda spec, deltas: deltas


def _matrices(
    make: Callable[[Deltas, float], Deltas], others: Callable[[Deltas], Deltas]
) -> Callable[[ModelPool, Facts, float], Step]:
    """A transform of matrices that needs nothing but them."""

    def steps(pool: ModelPool, facts: Facts, number: float) -> Step:
        def step(spec: TensorSpec, deltas: Deltas) -> Deltas:
            if not is_matrix(spec):
                return others(deltas)
            return by_matrix(pool, spec, deltas, lambda _, matrices: make(matrices, number))

        return step

    return steps


def _regmean(pool: ModelPool, facts: Facts, factor: float) -> Step:
    def step(spec: TensorSpec, deltas: Deltas) -> Deltas:
        if not is_matrix(spec):
            return averaged(deltas)
        grams = {expert: _gram(pool, facts, expert, spec) for expert in deltas}
        return by_matrix(
            pool, spec, deltas, lambda i, own: regmean(own, {expert: gram[i] for expert, gram in grams.items()}, factor)
        )

    return step


def _gram(pool: ModelPool, facts: Facts, expert: str, spec: TensorSpec) -> torch.Tensor:
    """One Gram matrix for each map that the tensor holds."""
    gram, inputs = facts.gram(expert, spec.name), spec.shape[-2 if inputs_first(pool, spec) else -1]
    expected = f"regmean: expert {expert}: expected the Gram matrix of the inputs of {spec.name}"
    if gram is None:
        raise MergeError(
            f"{expected}; got none; give calibration text, or choose another transform: of a mixture of experts, "
            "routers and experts that share a tensor are not measured"
        )
    if gram.shape != (shape := (*spec.shape[:-2], inputs, inputs)):
        raise MergeError(f"{expected}, {shape}; got {tuple(gram.shape)}; calibrate with this expert")
    if not bool(gram.isfinite().all()):
        raise MergeError(f"{expected}, finite; got NaN or infinity; calibrate in a wider dtype or with other text")
    return gram.reshape(-1, inputs, inputs)


def _pcb(pool: ModelPool, facts: Facts, ratio: float) -> Step:
    names = tuple(spec.name for spec in filter(is_float, pool.specs))
    competition = Competition.of(pool, names, ratio)
    return lambda spec, deltas: competition.apply(deltas)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """A curvature that a transform asks for, in words."""

    transform: str
    fact: str
    give: str

    def check(self, spec: TensorSpec, expert: str, curvature: torch.Tensor | None) -> None:
        """Refuse a curvature that is missing or does not fit."""
        expected = f"{self.transform}: expert {expert}: expected the {self.fact} of {spec.name}"
        if curvature is None:
            raise MergeError(f"{expected}; got none; give {self.give}")
        if curvature.shape != spec.shape:
            raise MergeError(f"{expected}, {spec.shape}; got {tuple(curvature.shape)}; give {self.give} of this expert")
        if not bool(((curvature >= 0) & (curvature < torch.inf)).all()):
            raise MergeError(
                f"{expected}, finite and not negative; got numbers from {float(curvature.min()):g} to "
                f"{float(curvature.max()):g}; give {self.give} of this expert"
            )


def _fisher(pool: ModelPool, facts: Facts, number: float) -> Step:
    wanted = _Wanted(transform="fisher", fact="Fisher information", give="calibration text")
    return _curved(pool, wanted, facts.fisher, fisher)


def _ota(pool: ModelPool, facts: Facts, density: float) -> Step:
    def make(deltas: Deltas, moments: Mapping[str, torch.Tensor]) -> Deltas:
        return ota(deltas, moments, density)

    give = f"the second moments of its optimizer as {MOMENTS_FILE}"
    wanted = _Wanted(transform="ota", fact="second moments", give=give)
    return _curved(pool, wanted, facts.second_moments, make)


def _curved(
    pool: ModelPool,
    wanted: _Wanted,
    curvature: Callable[[str, str], Curvature | None],
    make: Callable[[Deltas, Mapping[str, torch.Tensor]], Deltas],
) -> Step:
    """A transform of any tensor whose curvature is known; others than matrices may lack it."""

    def step(spec: TensorSpec, deltas: Deltas) -> Deltas:
        found = {expert: curvature(expert, spec.name) for expert in deltas}
        known = {expert: _whole(pool, spec, own) for expert, own in found.items() if own is not None}
        if len(known) < len(deltas) and not is_matrix(spec):
            return averaged(deltas)
        for expert in deltas:
            wanted.check(spec, expert, known.get(expert))
        return make(deltas, known)

    return step


def _whole(pool: ModelPool, spec: TensorSpec, curvature: Curvature) -> torch.Tensor:
    """A curvature element by element, as the weight is stored."""
    if isinstance(curvature, torch.Tensor):
        return curvature.float()
    row, column = (factor.double() for factor in curvature)
    product = (row[..., :, None] * column[..., None, :]).float()
    return product.mT if inputs_first(pool, spec) else product


STEPS: Mapping[str, Callable[[ModelPool, Facts, float], Step]] = MappingProxyType(
    {
        "none": _none,
        "star": _matrices(star, others=_kept),
        "tsv_m": _matrices(tsv_m, others=averaged),
        "lore": _matrices(lore, others=averaged),
        "wudi": _matrices(wudi, others=averaged),
        "regmean": _regmean,
        "pcb": _pcb,
        "fisher": _fisher,
        "ota": _ota,
    }
)
"""What to do with each tensor, once the pool, what is known of it, and the transform's number are."""
