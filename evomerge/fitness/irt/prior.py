"""What parents and merge coefficients say of a candidate's ability before it answers anything.

Multivariate ridge regression with t errors (Lange, Little and Taylor, 1989): most merges end close to their parents,
and some collapse. The penalties are a prior, so that there is one formula with and without an archive: before it
exists, a child is expected at the mean of its parents, with a covariance of 1.3 times half of the population's.

Legend: M candidates, T archived ones, K parents, D dimensions, Q merge coefficients, F = 1 + K D + Q features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt.ability import Abilities, AbilityPrior
from evomerge.fitness.irt.bank import ItemBank

__all__ = ["Family", "family_prior"]

_INFLATION = 1.3
_FREEDOM = 3.0
"""Degrees of freedom: how heavy the tail of merges that ended far from their parents is."""

_START_ROWS = 8.0
"""Archived candidates that the scale believed at the start counts as."""

_SWEEPS = 4

_PARENT_PENALTY = 10.0
_COEFFICIENT_PENALTY = 4.0
"""Ridge penalties, in archived candidates: of a parent's ability (in population sds) and of a coefficient. The
intercept's is 1: a shift that all promoted candidates share is believed after a few."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Family:
    """Candidates by descent.

    Attributes:
        parents: abilities of the parents `[M, K, D]`; K = 0 where none are known.
        coefficients: merge coefficients `[M, Q]`, of the order of 1; Q may be 0.

    Raises:
        TaskError: shapes that do not fit together, or values that are not finite.
    """

    parents: Floats
    coefficients: Floats

    def __post_init__(self) -> None:
        shapes = self.parents.shape, self.coefficients.shape
        if self.parents.ndim != 3 or self.coefficients.ndim != 2 or shapes[0][0] != shapes[1][0]:
            raise TaskError(
                f"expected parents' abilities [candidates, parents, dimensions] and coefficients [candidates, number]; "
                f"got {shapes[0]} and {shapes[1]}"
            )
        if not (np.isfinite(self.parents).all() and np.isfinite(self.coefficients).all()):
            raise TaskError("expected finite parents' abilities and merge coefficients; got some that are not")

    def __len__(self) -> int:
        return len(self.parents)


def family_prior(
    bank: ItemBank, family: Family, archive: Family | None = None, children: Abilities | None = None
) -> AbilityPrior:
    """Prior of candidates from their parents, regressed on an archive of candidates that answered something.

    Args:
        bank: the items.
        family: the candidates `[M]`.
        archive: earlier candidates `[T]`, described alike: fully evaluated or not.
        children: their abilities `[T]`; the less a candidate answered, the wider, and the less it teaches.

    Raises:
        TaskError: an archive with other numbers of parents or coefficients, or without its abilities.
    """
    past, known = _past(family, archive, children, bank.dimensions)
    features, seen, penalty = _features(bank, family), _features(bank, past), _penalties(family, bank.dimensions)
    residuals, weight = known.mean - _middle(bank, past), np.ones(len(past))
    leverage = _leverage(features, np.diag(1.0 / penalty))
    share = _INFLATION / 2.0 if family.parents.shape[1] else 1.0
    start = share * (_FREEDOM - 2.0) / _FREEDOM / float(leverage.mean()) * bank.covariance
    for _ in range(_SWEEPS):
        inverse = np.asarray(np.linalg.inv((seen.T * weight) @ seen + np.diag(penalty)), dtype=np.float64)
        slopes = inverse @ (seen.T * weight) @ residuals  # [F, D]
        errors = residuals - seen @ slopes
        scatter = _START_ROWS * start + (errors.T * weight) @ errors + (slopes.T * penalty) @ slopes
        scale = (scatter + np.einsum("t,tde->de", weight, known.covariance)) / (_START_ROWS + len(past))
        precision = np.linalg.inv(scale)
        distance = np.einsum("td,de,te->t", errors, precision, errors)
        distance += np.einsum("de,ted->t", precision, known.covariance)
        weight = (_FREEDOM + bank.dimensions) / (_FREEDOM + distance)
    return AbilityPrior(
        mean=_middle(bank, family) + features @ slopes,
        scale=scale * _leverage(features, inverse)[:, None, None],
        freedom=_FREEDOM,
    )


def _leverage(features: Floats, inverse: Floats) -> Floats:
    """`1 + x' inverse x`, `[M]`."""
    return np.asarray(1.0 + np.einsum("mf,fg,mg->m", features, inverse, features))


def _past(family: Family, archive: Family | None, children: Abilities | None, size: int) -> tuple[Family, Abilities]:
    """The archive, empty if there is none."""
    if (archive is None) != (children is None):
        raise TaskError("expected archived candidates together with their abilities; got one without the other")
    kinds = family.parents.shape[1:], family.coefficients.shape[1]
    if family.parents.shape[2] != size:
        raise TaskError(f"expected parents' abilities of {size} dimensions; got {family.parents.shape[2]}")
    if archive is None or children is None:
        none = Family(parents=np.empty((0, *kinds[0])), coefficients=np.empty((0, kinds[1])))
        return none, Abilities(mean=np.empty((0, size)), covariance=np.empty((0, size, size)))
    got = archive.parents.shape[1:], archive.coefficients.shape[1]
    if got != kinds or children.mean.shape != (len(archive), size):
        raise TaskError(
            f"expected an archive with parents {kinds[0]}, {kinds[1]} coefficients and abilities "
            f"{(len(archive), size)}; got {got[0]}, {got[1]} and {children.mean.shape}"
        )
    return archive, children


def _middle(bank: ItemBank, family: Family) -> Floats:
    """Mean of the parents, or of the population where none are known, `[M, D]`."""
    if family.parents.shape[1]:
        return np.asarray(family.parents.mean(axis=1))
    return np.repeat(bank.mean[None], len(family), axis=0)


def _features(bank: ItemBank, family: Family) -> Floats:
    """1, parents' abilities in population standard deviations, coefficients, `[M, F]`."""
    white = np.linalg.inv(np.linalg.cholesky(bank.covariance)).T
    parents = ((family.parents - bank.mean) @ white).reshape(len(family), family.parents.shape[1] * bank.dimensions)
    return np.hstack([np.ones((len(family), 1)), parents, family.coefficients])


def _penalties(family: Family, size: int) -> Floats:
    """Ridge penalty of each feature, `[F]`."""
    parents = np.full(family.parents.shape[1] * size, _PARENT_PENALTY * max(family.parents.shape[1], 1))
    return np.concatenate([[1.0], parents, np.full(family.coefficients.shape[1], _COEFFICIENT_PENALTY)])
