"""From the responses to a few items to the mean score over all items, with its uncertainty.

Every estimator is called alike: `estimator(responses, inclusion)`. The published ones that need an item bank are in
`published`. Knows nothing of objectives, directions or fronts.

Legend: M candidates, N items; responses `[M, N]`, NaN where not asked; inclusion `[M, N]`, the probability with which
an item was drawn at random, NaN where it was chosen or not asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt.ability import LACK_OF_FIT, Abilities, AbilityPrior, checked, map_abilities
from evomerge.fitness.irt.bank import ItemBank
from evomerge.fitness.irt.design import Places
from evomerge.fitness.irt.link import unit_variance

__all__ = ["Aipw", "Estimates", "Estimator", "MapAbility", "PlainMean", "Stratified", "audit_z", "model_score"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimates:
    """Mean score over all items of each candidate, `[M]` each.

    Attributes:
        mean: estimate.
        sd: its standard deviation.
        items_used: items that were asked.
        audit_z: standardized residual of the randomly drawn items under the model, near a standard normal where the
            model holds; NaN without such items, or without a model.
    """

    mean: Floats
    sd: Floats
    items_used: Places
    audit_z: Floats


class Estimator(Protocol):
    """Reads what was asked as a mean score over everything."""

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """Estimate.

        Args:
            responses: scores `[M, N]`, NaN where an item was not asked.
            inclusion: probability of each randomly drawn item `[M, N]`; NaN elsewhere. None: no item was drawn so.

        Raises:
            TaskError: responses that the estimator cannot read.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainMean:
    """Mean of the answers, of a simple random sample.

    The variance is `s^2 / n (1 - n / N)`; of right-or-wrong answers, from the sample plus two right and two wrong ones
    (Agresti and Coull, 1998). A candidate without answers has a NaN mean and an infinite sd.
    """

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """See `Estimator`."""
        count = _counted(responses)
        mean, variance = _sample_moments(responses)
        rest = 1.0 - count / responses.shape[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            sd = np.where(count > 0, np.sqrt(variance / count * rest), np.inf)
        return Estimates(mean=mean, sd=sd, items_used=count, audit_z=np.full(len(mean), np.nan))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stratified:
    """Mean of the strata's means, weighted by their size.

    A stratum without answers takes the mean of all answers. Each stratum's variance is the pooled one within strata.

    Attributes:
        strata: stratum of each item `[N]`, counted from 0.
    """

    strata: Places

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """See `Estimator`."""
        count = _counted(responses)
        overall, spread = _sample_moments(responses)
        member = (self.strata[:, None] == np.unique(self.strata)).astype(np.float64)  # [N, strata]
        size, asked = member.sum(axis=0), ~np.isnan(responses) @ member
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(asked > 0, np.nan_to_num(responses) @ member / asked, overall[:, None])
            square = np.nansum((responses - means @ member.T) ** 2, axis=1)
            pooled = np.maximum((square + spread) / (np.maximum(count - (asked > 0).sum(axis=1), 0) + 1.0), 0.0)
            rest = np.where(asked > 0, (1.0 - asked / size) / asked, 1.0)
        share = size / size.sum()
        sd = np.where(count > 0, np.sqrt(pooled * (share**2 * rest).sum(axis=1)), np.inf)
        return Estimates(mean=means @ share, sd=sd, items_used=count, audit_z=np.full(len(sd), np.nan))


def _counted(responses: Floats) -> Places:
    """Answers per candidate.

    Raises:
        TaskError: no item, no candidate, or scores that are infinite.
    """
    if responses.ndim != 2 or 0 in responses.shape:
        raise TaskError(f"expected responses of shape (candidates, items), at least 1 x 1; got {responses.shape}")
    if np.isinf(responses).any():
        raise TaskError("expected finite scores, NaN where an item was not asked; got an infinite one")
    return np.asarray((~np.isnan(responses)).sum(axis=1))


def _sample_moments(responses: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of each candidate's answers, `[M]`; NaN and infinite without answers."""
    asked = ~np.isnan(responses)
    count, answers = asked.sum(axis=1), np.nan_to_num(responses)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = answers.sum(axis=1) / count
        square = np.where(asked, (responses - mean[:, None]) ** 2, 0.0).sum(axis=1)
        plain = np.where(count > 1, square / (count - 1), np.inf)
    smoothed = (answers.sum(axis=1) + 2.0) / (count + 4.0)
    binary = np.isin(responses[asked], (0.0, 1.0)).all()
    return mean, smoothed * (1.0 - smoothed) if binary else plain


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MapAbility:
    """Posterior of ability under a prior of each candidate's own, and what follows for the items not asked.

    `(sum of asked y_i + sum of unasked E[p_i]) / N`, with variance `g' C g + sum of unasked phi_i V_i / N^2`: what is
    not known of ability, and the chance in what was not asked. With `prior.family_prior` it knows parents and merge
    coefficients; with `ability.population_prior` nothing but the calibrators.
    """

    bank: ItemBank
    prior: AbilityPrior

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """See `Estimator`."""
        found = map_abilities(self.bank, responses, self.prior)
        mean, sd = model_score(self.bank, found, responses)
        z = audit_z(self.bank, self.prior, responses, inclusion)
        return Estimates(mean=mean, sd=sd, items_used=_counted(responses), audit_z=z)


def model_score(bank: ItemBank, abilities: Abilities, responses: Floats) -> tuple[Floats, Floats]:
    """Mean score over all items and its sd, `[M]`, from answers and abilities."""
    unasked, count = np.isnan(responses), len(bank.items)
    expected, slope = abilities.plugged_in(bank)
    mean = np.where(unasked, expected, responses).sum(axis=1) / count
    gradient = np.where(unasked, slope, 0.0) @ bank.slopes / count
    ability = np.einsum("md,mde,me->m", gradient, abilities.covariance, gradient)
    chance = np.where(unasked, bank.dispersion * unit_variance(bank.link, expected), 0.0).sum(axis=1) / count**2
    return mean, np.sqrt(ability + chance)


def audit_z(bank: ItemBank, prior: AbilityPrior, responses: Floats, inclusion: Floats | None) -> Floats:
    """Standardized sum of the audit items' residuals, each candidate read from its other items only; `[M]`."""
    if inclusion is None:
        return np.full(len(responses), np.nan)
    total, variance = audit_sums(bank, prior, responses, inclusion)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(variance > 0, total / np.sqrt(variance), np.nan))


def audit_sums(bank: ItemBank, prior: AbilityPrior, responses: Floats, inclusion: Floats) -> tuple[Floats, Floats]:
    """Sum of the audit items' residuals and its variance under the model, `[M]` each."""
    audit = ~np.isnan(inclusion) & ~np.isnan(responses)
    others = map_abilities(bank, np.where(audit, np.nan, responses), prior)
    expected, slope = others.plugged_in(bank)
    total = np.where(audit, responses - expected, 0.0).sum(axis=1)
    gradient = np.where(audit, slope, 0.0) @ bank.slopes
    variance = np.einsum("md,mde,me->m", gradient, others.covariance, gradient)
    chance = bank.dispersion * unit_variance(bank.link, expected) * LACK_OF_FIT
    return total, variance + np.where(audit, chance, 0.0).sum(axis=1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Aipw:
    """Augmented inverse probability weighting: the model's answer plus what random items say against it.

    `(sum of m_i + sum over audit of (y_i - m_i) / pi_i) / N`, where `m_i` is the model's expectation from the designed
    items only (Robins, Rotnitzky and Zhao, 1994). Unbiased whatever the model is worth, for which designed answers may
    enter through the model alone: an item is designed only if the audit did not draw it. A candidate without audit
    items has an infinite sd.
    """

    bank: ItemBank
    prior: AbilityPrior

    def __call__(self, responses: Floats, inclusion: Floats | None = None) -> Estimates:
        """See `Estimator`."""
        responses = checked(self.bank, responses)
        drawn = np.full(responses.shape, np.nan) if inclusion is None else inclusion
        audit = ~np.isnan(drawn) & ~np.isnan(responses)
        designed = np.where(audit, np.nan, responses)
        model, _ = map_abilities(self.bank, designed, self.prior).plugged_in(self.bank)
        count, size = audit.sum(axis=1), len(self.bank.items)
        residual = np.where(audit, np.nan_to_num(responses) - model, 0.0)
        weighted = np.divide(residual, drawn, out=np.zeros_like(residual), where=audit)
        chance = (self.bank.dispersion * unit_variance(self.bank.link, model)).mean(axis=1)
        with np.errstate(divide="ignore"):
            variance = ((residual**2).sum(axis=1) + chance) / (count + 1.0) / count * (1.0 - count / size)
        return Estimates(
            mean=(model.sum(axis=1) + weighted.sum(axis=1)) / size,
            sd=np.where(count > 0, np.sqrt(np.maximum(variance, 0.0)), np.inf),
            items_used=_counted(responses),
            audit_z=audit_z(self.bank, self.prior, responses, inclusion),
        )
