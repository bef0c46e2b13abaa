import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt import (
    Abilities,
    AbilityPrior,
    Family,
    ItemBank,
    family_prior,
    map_abilities,
    population_prior,
)


def bank_of(items: int, dimensions: int = 3, seed: int = 0, steep: float = 1.0) -> ItemBank:
    rng = np.random.default_rng(seed)
    return ItemBank(
        task="math",
        digest="d",
        items=tuple(range(items)),
        link="logistic",
        slopes=steep * rng.normal(0.4, 0.8, (items, dimensions)),
        difficulties=steep * rng.normal(0.0, 1.0, items),
        dispersion=np.ones(items),
        mean=np.zeros(dimensions),
        covariance=np.eye(dimensions),
        calibrators=500,
    )


def answers(bank: ItemBank, theta: Floats, seed: int = 1) -> Floats:
    rng = np.random.default_rng(seed)
    return (rng.random((len(theta), len(bank.items))) < 1 / (1 + np.exp(-bank.linear(theta)))).astype(np.float64)


def test_it_finds_the_mode_that_a_general_optimizer_finds() -> None:
    bank = bank_of(30)
    responses = answers(bank, np.array([[1.0, 0.0, -1.0]]))
    responses[0, ::4] = np.nan
    found = map_abilities(bank, responses, population_prior(bank, 1), lack_of_fit=1.0)
    asked = ~np.isnan(responses[0])

    def loss(theta: Floats) -> float:
        eta = bank.linear(theta[None])[0][asked]
        return float((np.logaddexp(0, eta) - responses[0][asked] * eta).sum() + 0.5 * theta @ theta)

    assert np.allclose(found.mean[0], minimize(loss, np.zeros(3), tol=1e-10).x, atol=1e-4)


def test_many_candidates_are_found_as_one_by_one() -> None:
    bank = bank_of(30)
    responses = answers(bank, np.random.default_rng(2).standard_normal((20, 3)))
    prior = AbilityPrior(mean=np.zeros((20, 3)), scale=np.repeat(np.eye(3)[None], 20, axis=0), freedom=3.0)
    together = map_abilities(bank, responses, prior)
    alone = map_abilities(bank, responses[7:8], AbilityPrior(mean=prior.mean[7:8], scale=prior.scale[7:8], freedom=3.0))
    assert np.allclose(together.mean[7], alone.mean[0], atol=1e-5)
    assert np.allclose(together.covariance[7], alone.covariance[0], atol=1e-5)


def test_the_truth_lies_in_the_posterior() -> None:
    bank = bank_of(60)
    theta = np.random.default_rng(3).standard_normal((400, 3))
    found = map_abilities(bank, answers(bank, theta), population_prior(bank, 400), lack_of_fit=1.0)
    away = theta - found.mean
    distance = np.einsum("md,mde,me->m", away, np.linalg.inv(found.covariance), away)
    assert 0.85 < (distance < 6.25).mean() < 0.95  # 90 % of a chi square with 3 degrees of freedom


def test_steep_items_do_not_diverge() -> None:
    bank = bank_of(40, dimensions=1, steep=25.0)
    responses = answers(bank, np.linspace(-3, 3, 50)[:, None])
    for freedom in (3.0, math.inf):
        prior = AbilityPrior(mean=np.full((50, 1), -4.0), scale=np.ones((50, 1, 1)), freedom=freedom)
        found = map_abilities(bank, responses, prior)
        assert np.isfinite(found.mean).all()
        assert np.abs(found.mean).max() < 10


@pytest.mark.parametrize("answer", [0.0, 1.0])
@pytest.mark.parametrize("freedom", [3.0, math.inf])
def test_all_right_and_all_wrong_are_finite(answer: float, freedom: float) -> None:
    bank = bank_of(40)
    prior = AbilityPrior(mean=np.zeros((2, 3)), scale=np.repeat(np.eye(3)[None], 2, axis=0), freedom=freedom)
    found = map_abilities(bank, np.full((2, 40), answer), prior)
    assert np.isfinite(found.mean).all()
    assert (np.linalg.eigvalsh(found.covariance) > 0).all()


@pytest.mark.parametrize("freedom", [3.0, math.inf])
def test_without_answers_the_prior_remains(freedom: float) -> None:
    bank = bank_of(10)
    prior = AbilityPrior(mean=np.full((2, 3), 0.7), scale=np.repeat(0.3 * np.eye(3)[None], 2, axis=0), freedom=freedom)
    found = map_abilities(bank, np.full((2, 10), np.nan), prior)
    assert np.allclose(found.mean, 0.7)
    assert np.allclose(found.covariance, prior.covariance)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_more_answers_never_widen_a_gaussian_posterior_of_a_gaussian_bank(seed: int, count: int) -> None:
    bank = replace(bank_of(20, seed=seed), link="gaussian")
    responses = np.full((1, 20), np.nan)
    responses[0, :count] = 1.0
    less = responses.copy()
    less[0, count - 1] = np.nan
    prior = population_prior(bank, 1)
    more_known, less_known = map_abilities(bank, responses, prior), map_abilities(bank, less, prior)
    assert np.linalg.eigvalsh(less_known.covariance[0] - more_known.covariance[0]).min() > -1e-9


def test_a_heavy_tail_lets_a_surprise_go_further() -> None:
    bank = bank_of(60, dimensions=1)
    responses = answers(bank, np.array([[4.0]]))
    scale = np.full((1, 1, 1), 0.05)
    light = map_abilities(bank, responses, AbilityPrior(mean=np.zeros((1, 1)), scale=scale))
    heavy = map_abilities(bank, responses, AbilityPrior(mean=np.zeros((1, 1)), scale=scale, freedom=3.0))
    assert heavy.mean[0, 0] > light.mean[0, 0] + 0.1


@pytest.mark.parametrize("wrong", [np.ones((2, 9)), np.ones(10), np.empty((0, 10)), np.full((1, 10), 2.0)])
def test_unreadable_responses_are_refused(wrong: Floats) -> None:
    bank = bank_of(10)
    with pytest.raises(TaskError, match="expected"):
        map_abilities(bank, wrong, population_prior(bank, max(len(wrong), 1)))


def test_infinite_scores_are_refused() -> None:
    bank = replace(bank_of(10), link="gaussian")
    with pytest.raises(TaskError, match="finite"):
        map_abilities(bank, np.full((1, 10), np.inf), population_prior(bank, 1))


def family(rng: np.random.Generator, count: int) -> Family:
    return Family(parents=rng.standard_normal((count, 2, 3)), coefficients=rng.random((count, 2)))


def test_before_any_archive_children_are_expected_between_their_parents() -> None:
    bank, rng = bank_of(10), np.random.default_rng(0)
    kin = family(rng, 50)
    prior = family_prior(bank, kin)
    assert np.allclose(prior.mean, kin.parents.mean(axis=1))
    assert np.allclose(prior.covariance.mean(axis=0), 0.65 * np.eye(3), atol=1e-9)


def test_an_archive_teaches_coefficients_and_narrows() -> None:
    bank, rng = bank_of(10), np.random.default_rng(0)
    past, new = family(rng, 200), family(rng, 50)

    def child(kin: Family) -> Floats:
        return np.asarray(kin.parents.mean(axis=1) + np.outer(kin.coefficients[:, 0] - 0.5, [2.0, 0.0, 0.0]))

    children = Abilities(mean=child(past), covariance=np.repeat(0.001 * np.eye(3)[None], 200, axis=0))
    prior = family_prior(bank, new, past, children)
    assert np.abs(prior.mean - child(new)).mean() < 0.05
    assert prior.covariance[:, 0, 0].max() < 0.5 * family_prior(bank, new).covariance[:, 0, 0].min()
    assert prior.covariance[:, 1, 1].max() < 0.1


def test_without_parents_an_archive_centres_the_prior() -> None:
    bank = bank_of(10)
    past = Family(parents=np.empty((20, 0, 3)), coefficients=np.empty((20, 0)))
    new = Family(parents=np.empty((2, 0, 3)), coefficients=np.empty((2, 0)))
    children = Abilities(mean=np.full((20, 3), 3.0), covariance=np.zeros((20, 3, 3)))
    assert np.allclose(family_prior(bank, new).covariance, bank.covariance)
    assert np.allclose(family_prior(bank, new, past, children).mean, 3.0, atol=0.5)


def test_archives_of_another_kind_are_refused() -> None:
    bank, rng = bank_of(10), np.random.default_rng(0)
    kin = family(rng, 4)
    known = Abilities(mean=np.zeros((4, 3)), covariance=np.zeros((4, 3, 3)))
    with pytest.raises(TaskError, match="one without the other"):
        family_prior(bank, kin, kin)
    with pytest.raises(TaskError, match="coefficients"):
        family_prior(bank, kin, Family(parents=kin.parents, coefficients=kin.coefficients[:, :1]), known)
    with pytest.raises(TaskError, match="3 dimensions"):
        family_prior(bank, Family(parents=kin.parents[:, :, :2], coefficients=kin.coefficients))
    with pytest.raises(TaskError, match="finite"):
        Family(parents=np.full((1, 2, 3), np.nan), coefficients=np.zeros((1, 0)))
    with pytest.raises(TaskError, match="expected parents"):
        Family(parents=np.zeros((1, 2, 3)), coefficients=np.zeros((2, 0)))
