import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt import (
    Aipw,
    Estimator,
    GmpIrt,
    GpIrt,
    ItemBank,
    MapAbility,
    MpIrt,
    PIrt,
    PlainMean,
    Stratified,
    audit_order,
    audited,
    audited_batch,
    fit_bank,
    gp_weight,
    inclusion_of,
    map_abilities,
    population_prior,
    strata_of,
)

ITEMS = 60


def simulated() -> tuple[ItemBank, Floats, Floats]:
    """A bank, responses of 200 models it was not fitted on, and abilities of two parents for each."""
    rng = np.random.default_rng(0)
    slopes = np.hstack([rng.lognormal(0.3, 0.4, (ITEMS, 1)), rng.normal(0.0, 0.6, (ITEMS, 1))])
    parents = rng.standard_normal((200, 2, 2))
    theta = np.concatenate([rng.standard_normal((300, 2)), parents[:, 0], parents[:, 1], parents.mean(axis=1)])
    eta = theta @ slopes.T - rng.normal(0.0, 1.3, ITEMS)
    responses = (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))).astype(np.float64)
    bank = fit_bank(responses[:700], task="math", items=range(ITEMS), digest="d", dimensions=2)
    fitted = map_abilities(bank, responses[300:700], population_prior(bank, 400)).mean
    return bank, responses[700:], np.stack([fitted[:200], fitted[200:]], axis=1)


BANK, TESTS, PARENTS = simulated()
STRATA = strata_of(TESTS.mean(axis=0), 4)


def every(count: int = 200) -> dict[str, Estimator]:
    """All estimators, for the first candidates."""
    prior = population_prior(BANK, count)
    anchors = np.linspace(1.0, 2.0, ITEMS)
    return {
        "mean": PlainMean(),
        "stratified": Stratified(strata=STRATA),
        "p-IRT": PIrt(bank=BANK),
        "gp-IRT": GpIrt(bank=BANK, weight=0.4, anchors=anchors),
        "mp-IRT": MpIrt(bank=BANK, parents=PARENTS[:count]),
        "gmp-IRT": GmpIrt(bank=BANK, parents=PARENTS[:count]),
        "MAP": MapAbility(bank=BANK, prior=prior),
        "AIPW": Aipw(bank=BANK, prior=prior),
    }


NAMES = sorted(every(1))


def drawn(count: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Responses to a random sample of each candidate's own, and its inclusion probabilities."""
    mask = audited(audit_order(np.random.default_rng(seed), *TESTS.shape), count)
    return np.where(mask, TESTS, np.nan), inclusion_of(mask, count)


@pytest.mark.parametrize("name", NAMES)
def test_every_estimator_comes_near_the_truth(name: str) -> None:
    responses, inclusion = drawn(30)
    found = every()[name](responses, inclusion)
    assert np.abs(found.mean - TESTS.mean(axis=1)).mean() < 0.08
    assert (found.items_used == 30).all()
    assert (found.sd > 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"gp-IRT", "gmp-IRT"}])
def test_all_items_asked_leave_nothing_open(name: str) -> None:
    found = every()[name](TESTS, np.ones(TESTS.shape))
    assert np.allclose(found.mean, TESTS.mean(axis=1))
    assert np.allclose(found.sd, 0.0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 5])
def test_all_right_and_all_wrong_stay_in_bounds(name: str, answer: float, count: int) -> None:
    responses, inclusion = drawn(count)
    found = every()[name](np.where(np.isnan(responses), np.nan, answer), inclusion)
    assert np.isfinite(found.mean).all()
    slack = 1.0 if name == "AIPW" else 1e-9  # unbiased, so not bounded
    assert ((found.mean >= -slack) & (found.mean <= 1 + slack)).all()
    if name not in {"mean", "stratified"} or count > 1:
        assert np.isfinite(found.sd).all()
        assert (found.sd > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_without_answers_nothing_is_claimed(name: str) -> None:
    found = every(2)[name](np.full((2, ITEMS), np.nan), np.full((2, ITEMS), np.nan))
    assert (found.items_used == 0).all()
    assert ((found.sd > 0.05) | np.isinf(found.sd)).all()
    assert np.isnan(found.audit_z).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, ITEMS), (2, ITEMS, 1)])
def test_empty_and_misshapen_matrices_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(TaskError, match="expected"):
        every(2)[name](np.zeros(shape))


@pytest.mark.parametrize("name", NAMES)
def test_infinite_scores_are_refused(name: str) -> None:
    with pytest.raises(TaskError, match="expected"):
        every(1)[name](np.full((1, ITEMS), np.inf))


@pytest.mark.parametrize("name", ["mean", "stratified", "MAP", "AIPW"])
def test_intervals_hold(name: str) -> None:
    held = []
    for seed in range(5):
        responses, inclusion = drawn(15, seed)
        found = every()[name](responses, inclusion)
        held.append(np.abs(found.mean - TESTS.mean(axis=1)) <= 1.645 * found.sd)
    assert 0.82 < np.mean(held) < 0.98


def test_aipw_is_unbiased_under_a_bank_that_is_wrong() -> None:
    prior = population_prior(BANK, 200)
    harder = ItemBank(
        **{name: getattr(BANK, name) for name in BANK.__dataclass_fields__} | {"difficulties": BANK.difficulties + 2.0}
    )
    bias = {"model": [], "aipw": []}  # type: dict[str, list[float]]
    for seed in range(20):
        responses, inclusion = drawn(10, seed)
        asked = np.isnan(inclusion)
        responses[asked & (np.arange(ITEMS) < 10)] = TESTS[asked & (np.arange(ITEMS) < 10)]
        truth = TESTS.mean(axis=1)
        bias["model"].append(float((MapAbility(bank=harder, prior=prior)(responses, inclusion).mean - truth).mean()))
        bias["aipw"].append(float((Aipw(bank=harder, prior=prior)(responses, inclusion).mean - truth).mean()))
    assert abs(np.mean(bias["aipw"])) < 0.01
    assert abs(np.mean(bias["model"])) > 0.025


def test_mixtures_are_mixtures() -> None:
    responses, _ = drawn(12)
    mean, p = PlainMean()(responses).mean, PIrt(bank=BANK)(responses).mean
    assert np.allclose(GpIrt(bank=BANK, weight=0.3)(responses).mean, 0.3 * mean + 0.7 * p)
    mp = MpIrt(bank=BANK, parents=PARENTS)(responses).mean
    assert np.allclose(GmpIrt(bank=BANK, parents=PARENTS)(responses).mean, 0.5 * mean + 0.5 * mp)


def test_mp_irt_stays_in_the_span_of_its_parents() -> None:
    one = PARENTS[:, :1]
    responses, _ = drawn(40)
    spanned = MpIrt(bank=BANK, parents=one)(responses).mean
    again = MpIrt(bank=BANK, parents=np.concatenate([one, 2.0 * one], axis=1))(responses).mean
    assert np.allclose(spanned, again, atol=1e-3)
    assert np.abs(spanned - PIrt(bank=BANK)(responses).mean).max() > 0.01
    with pytest.raises(TaskError, match="parents"):
        MpIrt(bank=BANK, parents=PARENTS[:3])(responses)


def test_the_gp_weight_grows_with_the_sample() -> None:
    weights = [gp_weight(BANK, TESTS, n) for n in (5, 20, 60)]
    assert weights == sorted(weights)
    assert 0 < weights[0] < weights[-1] < 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 59))
def test_strata_estimates_lie_between_the_extremes(seed: int, count: int) -> None:
    responses, _ = drawn(count, seed)
    found = Stratified(strata=STRATA)(responses)
    assert (found.mean >= np.nanmin(responses, axis=1) - 1e-9).all()
    assert (found.mean <= np.nanmax(responses, axis=1) + 1e-9).all()


def test_five_items_and_three_calibrators_still_work() -> None:
    responses = np.array([[1.0, 0, 1, 1, 0], [1, 0, 1, 0, 0], [0, 0, 1, 1, 0]])
    bank = fit_bank(responses, task="math", items=range(5), digest="d")
    asked = np.array([[1.0, np.nan, np.nan, 0.0, np.nan]])
    found = MapAbility(bank=bank, prior=population_prior(bank, 1))(asked)
    assert 0.2 < found.mean[0] < 0.8
    assert np.isfinite(found.sd).all()


def test_scores_without_bounds_are_estimated_in_their_units() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(50.0, 10.0, 20)
    scores = level + 8.0 * rng.standard_normal((200, 1)) + 3.0 * rng.standard_normal((200, 20))
    bank = fit_bank(scores[:150], task="bleu", items=range(20), digest="d", dimensions=1)
    mask = audited(audit_order(rng, 50, 20), 5)
    found = MapAbility(bank=bank, prior=population_prior(bank, 50))(np.where(mask, scores[150:], np.nan))
    truth = scores[150:].mean(axis=1)
    assert np.abs(found.mean - truth).mean() < 0.5 * np.abs(truth - scores[:150].mean()).mean()
    assert (np.abs(found.mean - truth) <= 1.645 * found.sd).mean() > 0.75


def real() -> Path | None:
    folder = Path(os.environ.get("EVOMERGE_RESPONSES", "missing"))
    return folder / "oll_gsm8k.npz" if (folder / "oll_gsm8k.npz").exists() else None


@pytest.mark.skipif(real() is None, reason="EVOMERGE_RESPONSES names no folder with oll_gsm8k.npz")
def test_on_real_responses_adaptive_items_halve_the_error() -> None:
    path = real()
    assert path is not None
    with np.load(path, allow_pickle=False) as file:
        responses = file["responses"].astype(np.float64)
    order = np.random.default_rng(0).permutation(len(responses))
    calibrators, tests = responses[order[:1000]], responses[order[-100:]]
    bank = fit_bank(calibrators, task="gsm8k", items=range(tests.shape[1]), digest="d")
    prior, truth = population_prior(bank, 100), tests.mean(axis=1)
    asked, abilities = np.zeros(tests.shape, dtype=bool), prior.abilities()
    stratum = audit_order(np.random.default_rng(1), *tests.shape)
    for total in (10, 20):
        asked, _ = audited_batch(bank, abilities, asked, stratum, total=total)
        abilities = map_abilities(bank, np.where(asked, tests, np.nan), prior)
    ours = MapAbility(bank=bank, prior=prior)(np.where(asked, tests, np.nan))
    plain = np.where(audited(audit_order(np.random.default_rng(2), *tests.shape), 20), tests, np.nan)
    assert np.abs(ours.mean - truth).mean() < 0.6 * np.abs(PlainMean()(plain).mean - truth).mean()
