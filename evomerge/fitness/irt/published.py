"""The published estimators for reduced evaluation with item response theory, as baselines.

Formulas and sources stand at each class. None of them comes with an uncertainty; `sd` is the Laplace one of their own
fit. Ability is fitted by maximum likelihood as they do it, up to a ridge of 1e-3 that keeps all-right answers finite.

Legend: as in `estimators`; S the asked items, n of N, `tau = n / N`; `w_i` weights of anchor items, 1 in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt.ability import AbilityPrior, checked, map_abilities
from evomerge.fitness.irt.bank import ItemBank
from evomerge.fitness.irt.estimators import Estimates, model_score
from evomerge.fitness.irt.link import link_mean

__all__ = ["GmpIrt", "GpIrt", "MpIrt", "PIrt", "gp_weight"]

_RIDGE = 1e-3
_OFF_SPAN = 1e-6
"""Variance of ability outside of the parents' span: none, up to rounding."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PIrt:
    """p-IRT: `tau mean_S(y) + (1 - tau) mean_rest(p_i)` (tinyBenchmarks, Polo et al., 2024, section 4).

    Ability by maximum likelihood on S.
    """

    bank: ItemBank

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """See `Estimator`."""
        size = self.bank.dimensions
        scale = np.repeat(np.eye(size)[None] / _RIDGE, len(responses), axis=0)
        return _plugged_in(self.bank, responses, AbilityPrior(mean=np.zeros((len(responses), size)), scale=scale))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GpIrt:
    """gp-IRT: `c sum_S w_i y_i + (1 - c) p-IRT` (tinyBenchmarks, Polo et al., 2024, section 4).

    Attributes:
        weight: c, see `gp_weight`.
        anchors: weight of each item `[N]`; None weighs the asked items alike.
    """

    bank: ItemBank
    weight: float
    anchors: Floats | None = None

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """See `Estimator`."""
        model = PIrt(bank=self.bank)(responses)
        return _mixed(self.weight, _weighted_sum(responses, self.anchors), model)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MpIrt:
    """mp-IRT: p-IRT with ability `sum_k lambda_k gamma_k`, lambda by maximum likelihood on S.

    MERGE^3 (Mencattini et al., 2025), section 3.
    The span is held by a Gaussian prior that is flat inside it and of no width outside.

    Attributes:
        parents: abilities `gamma` of the endpoints `[M, K, D]`.
    """

    bank: ItemBank
    parents: Floats

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """See `Estimator`."""
        return _plugged_in(self.bank, responses, self._prior(responses))

    def _prior(self, responses: Floats) -> AbilityPrior:
        size = self.bank.dimensions
        if self.parents.ndim != 3 or (len(self.parents), self.parents.shape[2]) != (len(responses), size):
            raise TaskError(
                f"expected parents' abilities of shape ({len(responses)}, parents, {size}); got {self.parents.shape}"
            )
        inside = np.matmul(np.swapaxes(self.parents, 1, 2), self.parents)
        scale = inside / _RIDGE + _OFF_SPAN * np.eye(size)
        return AbilityPrior(mean=np.zeros((len(responses), size)), scale=scale)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GmpIrt:
    """gmp-IRT: `c sum_S w_i y_i + (1 - c) mp-IRT`, c = 1/2.

    MERGE^3 (Mencattini et al., 2025), section 3; c as in Mergenetic 0.1.1.

    Attributes:
        parents: as in `MpIrt`.
        anchors: as in `GpIrt`.
    """

    bank: ItemBank
    parents: Floats
    anchors: Floats | None = None
    weight: float = 0.5

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """See `Estimator`."""
        model = MpIrt(bank=self.bank, parents=self.parents)(responses)
        return _mixed(self.weight, _weighted_sum(responses, self.anchors), model)


def gp_weight(bank: ItemBank, validation: Floats, count: int) -> float:
    """Weight c of tinyBenchmarks: `b^2 / (v / (4 n) + b^2)`.

    `b` is the mean absolute error of p-IRT's expectations on the odd items with ability from the even ones, `v` the
    mean variance of a model's responses; 4 stands for what anchors save.

    Args:
        bank: the items.
        validation: full responses of models that the bank was not fitted with `[V, N]`.
        count: n.
    """
    even = np.arange(len(bank.items)) % 2 == 0
    size = bank.dimensions
    flat = AbilityPrior(
        mean=np.zeros((len(validation), size)), scale=np.repeat(np.eye(size)[None] / _RIDGE, len(validation), axis=0)
    )
    found = map_abilities(bank, np.where(even, validation, np.nan), flat, lack_of_fit=1.0)
    expected = link_mean(bank.link, bank.linear(found.mean))
    b = float(np.abs(np.nanmean((validation - expected)[:, ~even], axis=1)).mean())
    v = float(np.nanvar(validation, axis=1).mean())
    return b**2 / (v / (4.0 * count) + b**2) if b > 0 else 0.0


def _plugged_in(bank: ItemBank, responses: Floats, prior: AbilityPrior) -> Estimates:
    """Answers, and the expectation at the fitted ability where there is none."""
    responses = checked(bank, responses)
    found = map_abilities(bank, responses, prior, lack_of_fit=1.0)
    unasked = np.isnan(responses)
    expected = link_mean(bank.link, bank.linear(found.mean))
    _, sd = model_score(bank, found, responses)
    return Estimates(
        mean=np.where(unasked, expected, responses).mean(axis=1),
        sd=np.minimum(sd, 0.5) if bank.link == "logistic" else sd,
        items_used=np.asarray((~unasked).sum(axis=1)),
        audit_z=np.full(len(responses), math.nan),
    )


def _weighted_sum(responses: Floats, anchors: Floats | None) -> Floats:
    """`sum_S w_i y_i`, weights scaled to 1 over the asked items; NaN where nothing was asked."""
    weights = np.where(np.isnan(responses), 0.0, 1.0 if anchors is None else anchors)
    total = weights.sum(axis=1)
    answers = (weights * np.nan_to_num(responses)).sum(axis=1)
    return np.asarray(np.divide(answers, total, out=np.full(len(total), math.nan), where=total > 0))


def _mixed(weight: float, direct: Floats, model: Estimates) -> Estimates:
    """`c direct + (1 - c) model`; the model alone where nothing was asked."""
    share = np.where(np.isnan(direct), 0.0, weight)
    mean = share * np.nan_to_num(direct) + (1.0 - share) * model.mean
    return Estimates(mean=mean, sd=model.sd, items_used=model.items_used, audit_z=model.audit_z)
