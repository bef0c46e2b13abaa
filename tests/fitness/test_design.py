import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt import (
    Abilities,
    ItemBank,
    audit_order,
    audited,
    audited_batch,
    fit_bank,
    informative,
    kmeans_anchors,
    map_abilities,
    model_score,
    population_prior,
    random_items,
    strata_of,
    stratified_items,
)


def simulated(models: int = 300, items: int = 60, seed: int = 0) -> tuple[ItemBank, Floats]:
    """A bank and responses of models it was not fitted on."""
    rng = np.random.default_rng(seed)
    slopes = np.hstack([rng.lognormal(0.4, 0.5, (items, 1)), rng.normal(0.0, 0.6, (items, 1))])
    eta = rng.standard_normal((2 * models, 2)) @ slopes.T - rng.normal(0.0, 1.5, items)
    responses = (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))).astype(np.float64)
    bank = fit_bank(responses[:models], task="math", items=range(items), digest="d", dimensions=2)
    return bank, responses[models:]


BANK, TESTS = simulated()


def test_random_items_are_distinct_and_sorted() -> None:
    places = random_items(np.random.default_rng(0), 30, 12)
    assert len(set(places.tolist())) == 12
    assert places.tolist() == sorted(places.tolist())
    for count in (0, 31):
        with pytest.raises(TaskError, match="between 1 and 30"):
            random_items(np.random.default_rng(0), 30, count)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 1000), st.data())
def test_every_stratum_gets_its_share(items: int, groups: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, items))
    rng = np.random.default_rng(seed)
    strata = strata_of(rng.random(items), groups)
    places, inclusion = stratified_items(rng, strata, count)
    assert len(set(places.tolist())) == count
    assert np.allclose(inclusion, count / items)
    size = np.bincount(strata)
    drawn = np.bincount(strata[places], minlength=len(size))
    assert (np.abs(drawn - size * count / items) <= 1 + 1e-9).all()


def test_strata_are_in_order_of_difficulty() -> None:
    easiness = np.array([0.9, 0.1, 0.5, 0.2, 0.8, 0.4])
    assert strata_of(easiness, 3).tolist() == [2, 0, 1, 0, 2, 1]


def test_stratified_items_are_drawn_with_equal_probability() -> None:
    rng = np.random.default_rng(0)
    strata = strata_of(np.arange(12.0), 3)
    counts = np.zeros(12)
    for _ in range(3000):
        counts[stratified_items(rng, strata, 5)[0]] += 1
    assert np.allclose(counts / 3000, 5 / 12, atol=0.04)


def test_anchors_stand_for_their_clusters() -> None:
    features = np.repeat(np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]), [10, 20, 30], axis=0)
    features = features + 0.01 * np.random.default_rng(0).standard_normal(features.shape)
    places, weights = kmeans_anchors(np.random.default_rng(1), features, 3)
    assert [sum(places >= at) for at in (0, 10, 30)] == [3, 2, 1]
    assert np.allclose(weights, [1 / 6, 1 / 3, 1 / 2])


def test_identical_items_share_one_anchor() -> None:
    places, weights = kmeans_anchors(np.random.default_rng(1), np.zeros((5, 2)), 3)
    assert len(places) == 1
    assert weights.tolist() == [1.0]


def test_the_audit_is_a_beginning_of_a_uniform_order() -> None:
    order = audit_order(np.random.default_rng(0), 4000, 10)
    mask = audited(order, 3)
    assert (mask.sum(axis=1) == 3).all()
    assert np.allclose(mask.mean(axis=0), 0.3, atol=0.03)
    assert not (mask & ~audited(order, 5)).any()


def test_batches_grow_to_their_size_and_keep_what_was_asked() -> None:
    order = audit_order(np.random.default_rng(0), len(TESTS), 60)
    asked, abilities = np.zeros(TESTS.shape, dtype=bool), population_prior(BANK, len(TESTS)).abilities()
    for total in (10, 20, 60):
        before = asked
        asked, count = audited_batch(BANK, abilities, asked, order, total=total)
        assert (asked.sum(axis=1) == total).all()
        assert count == round(0.2 * total)
        assert not (before & ~asked).any()
        assert not (audited(order, count) & ~asked).any()
        abilities = map_abilities(BANK, np.where(asked, TESTS, np.nan), population_prior(BANK, len(TESTS)))
    with pytest.raises(TaskError, match="between 1 and 60"):
        audited_batch(BANK, abilities, asked, order, total=61)


def test_rows_may_want_different_numbers_of_items() -> None:
    abilities = population_prior(BANK, 3).abilities()
    asked = np.zeros((3, 60), dtype=bool)
    asked[2, :58] = True
    found = informative(BANK, abilities, asked, np.array([0, 5, 2]))
    assert found.sum(axis=1).tolist() == [0, 5, 60]
    assert not asked[1].any()


def test_the_first_pick_lowers_the_variance_most() -> None:
    abilities = Abilities(mean=np.array([[0.3, -0.2]]), covariance=0.05 * np.eye(2)[None])
    picked = int(informative(BANK, abilities, np.zeros((1, 60), dtype=bool), np.array([1])).argmax())
    mean, slope = abilities.expected(BANK)
    left = []
    for item in range(60):
        unasked = np.arange(60) != item
        a, w = BANK.slopes[item], slope[0, item] / 1.25
        covariance = np.linalg.inv(np.linalg.inv(abilities.covariance[0]) + w * np.outer(a, a))
        gradient = slope[0] @ BANK.slopes / 60
        rest = (mean * (1 - mean))[0][unasked].sum() / 60**2
        left.append(gradient @ covariance @ gradient + rest)
    assert picked == int(np.argmin(left))


def test_chosen_items_tell_more_than_random_ones() -> None:
    prior, truth = population_prior(BANK, len(TESTS)), TESTS.mean(axis=1)
    asked, abilities = np.zeros(TESTS.shape, dtype=bool), prior.abilities()
    for _ in range(2):
        asked = informative(BANK, abilities, asked, np.full(len(TESTS), 5))
        abilities = map_abilities(BANK, np.where(asked, TESTS, np.nan), prior)
    chosen, _ = model_score(BANK, abilities, np.where(asked, TESTS, np.nan))
    drawn = np.where(audited(audit_order(np.random.default_rng(0), *TESTS.shape), 10), TESTS, np.nan)
    plain, _ = model_score(BANK, map_abilities(BANK, drawn, prior), drawn)
    assert np.abs(chosen - truth).mean() < 0.9 * np.abs(plain - truth).mean()
