from dataclasses import replace

import numpy as np
import pytest

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt import (
    Audit,
    ItemBank,
    MapAbility,
    audit_generation,
    audit_order,
    audited,
    audited_batch,
    corrected,
    inclusion_of,
    map_abilities,
    population_prior,
)

ITEMS = 80


def bank_of() -> ItemBank:
    rng = np.random.default_rng(0)
    return ItemBank(
        task="math",
        digest="d",
        items=tuple(range(ITEMS)),
        link="logistic",
        slopes=np.hstack([rng.lognormal(0.2, 0.3, (ITEMS, 1)), rng.normal(0.0, 0.5, (ITEMS, 1))]),
        difficulties=rng.normal(0.0, 1.0, ITEMS),
        dispersion=np.ones(ITEMS),
        mean=np.zeros(2),
        covariance=np.eye(2),
        calibrators=1000,
    )


BANK = bank_of()
HARDER = replace(BANK, difficulties=BANK.difficulties + 2.5 * (np.arange(ITEMS) % 2))
"""A bank that believes every second item to be harder than it is."""


def generation(bank: ItemBank, seed: int, candidates: int = 50) -> tuple[Floats, Floats, Floats]:
    """True answers, answers asked with some bank's design, inclusion probabilities."""
    rng = np.random.default_rng(seed)
    chance = 1 / (1 + np.exp(-BANK.linear(rng.standard_normal((candidates, 2)))))
    truth = (rng.random(chance.shape) < chance).astype(np.float64)
    order, prior = audit_order(rng, candidates, ITEMS), population_prior(bank, candidates)
    asked, abilities = np.zeros(truth.shape, dtype=bool), prior.abilities()
    for total in (10, 20):
        asked, count = audited_batch(bank, abilities, asked, order, total=total, share=0.25)
        abilities = map_abilities(bank, np.where(asked, truth, np.nan), prior)
    return truth, np.where(asked, truth, np.nan), inclusion_of(audited(order, count), count)


def audit_of(bank: ItemBank, seed: int, candidates: int = 50) -> Audit:
    _, responses, inclusion = generation(bank, seed, candidates)
    return audit_generation(bank, population_prior(bank, len(responses)), responses, inclusion)


def test_a_true_bank_is_seldom_flagged_and_its_z_is_standard() -> None:
    audits = [audit_of(BANK, seed) for seed in range(40)]
    z = np.array([audit.z for audit in audits])
    assert np.abs(z).max() < 4
    assert abs(z.mean()) < 0.5
    assert 0.5 < z.std() < 1.2
    assert sum(audit.flagged for audit in audits) <= 1


def test_a_false_bank_is_flagged_with_the_right_sign() -> None:
    audits = [audit_of(HARDER, seed, candidates=200) for seed in range(10)]
    assert sum(audit.flagged for audit in audits) >= 9
    assert all(audit.residual > 0 for audit in audits)
    assert all(audit.items == 1000 and audit.candidates == 200 for audit in audits)


def test_correction_removes_the_bias_of_a_false_bank() -> None:
    before, after, covered = [], [], []
    for seed in range(10):
        truth, responses, inclusion = generation(HARDER, seed, 200)
        prior, score = population_prior(HARDER, 200), truth.mean(axis=1)
        estimates = MapAbility(bank=HARDER, prior=prior)(responses, inclusion)
        fixed = corrected(estimates, audit_generation(HARDER, prior, responses, inclusion), ITEMS)
        before.append((estimates.mean - score).mean())
        after.append((fixed.mean - score).mean())
        covered.append((np.abs(fixed.mean - score) <= 1.645 * fixed.sd).mean())
    assert np.mean(before) < -0.04
    assert abs(np.mean(after)) < 0.03
    assert np.mean(covered) > 0.85


def test_correction_hardly_touches_a_true_bank() -> None:
    moved = []
    for seed in range(10):
        _, responses, inclusion = generation(BANK, seed)
        prior = population_prior(BANK, 50)
        estimates = MapAbility(bank=BANK, prior=prior)(responses, inclusion)
        fixed = corrected(estimates, audit_generation(BANK, prior, responses, inclusion), ITEMS)
        moved.append(abs(fixed.mean - estimates.mean).mean())
        assert (fixed.sd >= estimates.sd).all()
    assert np.mean(moved) < 0.02


@pytest.mark.parametrize(
    ("residual", "promoted", "remedy"),
    [(0.01, 9, "none"), (-0.019, 9, "none"), (0.025, 9, "correct"), (0.05, 0, "correct"), (-0.05, 3, "refit")],
)
def test_remedies(residual: float, promoted: int, remedy: str) -> None:
    audit = Audit(residual=residual, se=0.01, spread=0.0, items=100, candidates=25)
    assert audit.remedy(promoted) == remedy


@pytest.mark.parametrize(("residual", "believed"), [(0.0, 0.0), (0.02, 0.0), (-0.02, 0.0), (0.04, 0.75), (-0.2, 0.99)])
def test_a_residual_is_believed_the_more_the_surer_it_is(residual: float, believed: float) -> None:
    audit = Audit(residual=residual, se=0.01, spread=0.02, items=100, candidates=25)
    assert audit.belief == pytest.approx(believed)
    assert audit.shift == pytest.approx(believed * residual)
    left = believed * 5e-4 + (1 - believed) * max(0.0, residual**2 - 1e-4)
    assert audit.doubt == pytest.approx(left)


def test_without_audit_items_nothing_is_said() -> None:
    _, responses, inclusion = generation(BANK, 0)
    prior = population_prior(BANK, 50)
    nothing = audit_generation(BANK, prior, responses, np.full_like(inclusion, np.nan))
    assert (nothing.z, nothing.flagged, nothing.remedy(5), nothing.items) == (0.0, False, "none", 0)
    estimates = MapAbility(bank=BANK, prior=prior)(responses)
    same = corrected(estimates, nothing, ITEMS)
    assert np.array_equal(same.mean, estimates.mean)
    assert np.array_equal(same.sd, estimates.sd)
    assert np.isnan(estimates.audit_z).all()


def test_candidates_of_one_kind_give_finite_audits() -> None:
    for answer in (0.0, 1.0):
        mask = audited(audit_order(np.random.default_rng(0), 1, ITEMS), 5)
        audit = audit_generation(BANK, population_prior(BANK, 1), np.where(mask, answer, np.nan), inclusion_of(mask, 5))
        assert np.isfinite([audit.residual, audit.se, audit.spread, audit.z]).all()


def test_z_of_single_candidates_is_standard_under_a_true_bank() -> None:
    _, responses, inclusion = generation(BANK, 3, candidates=600)
    z = MapAbility(bank=BANK, prior=population_prior(BANK, 600))(responses, inclusion).audit_z
    assert abs(z.mean()) < 0.15
    assert 0.75 < z.std() < 1.1


def test_unreadable_responses_are_refused() -> None:
    with pytest.raises(TaskError, match="expected"):
        audit_generation(BANK, population_prior(BANK, 1), np.ones((1, 3)), np.ones((1, 3)))
