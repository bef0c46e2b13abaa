"""When a bank is fitted again, with what, and what the audit says meanwhile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evomerge.config import ItemsConfig, Measured, ObjectiveConfig
from evomerge.errors import TaskError
from evomerge.fitness import split_items
from evomerge.fitness.calibrated import CalibratedMetric, calibrated, universe
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt import ItemBank, MapAbility, Residuals, fit_bank, population_prior

ITEMS = 80
DIFFICULTY = np.random.default_rng(1).normal(size=ITEMS)
SPLIT = split_items({"a": ITEMS + 20}, ItemsConfig(search=10, confirm=20), seed=5)
OBJECTIVE = ObjectiveConfig(name="a", task="a")


def answers(abilities: Floats, seed: int) -> Floats:
    chance = 1 / (1 + np.exp(2 * (DIFFICULTY - abilities[:, None])))
    return (np.random.default_rng(seed).random(chance.shape) < chance).astype(float)


def bank_of(matrix: Floats, task: str = "a", metric: str = "acc", digest: str = "d") -> ItemBank:
    return fit_bank(matrix, task=task, metric=metric, items=SPLIT.pool["a"], digest=digest)


def metric(bank: ItemBank | None, *measured: Measured) -> CalibratedMetric:
    banks = [] if bank is None else [bank]
    wanted = measured or (OBJECTIVE,)
    return calibrated(
        [metric for each in wanted for metric in each.metrics], SPLIT, size=400, digests={"a": "d"}, banks=banks, seed=5
    )[0]


def learned(found: CalibratedMetric, rows: Floats, first: int = 0) -> None:
    for number, row in enumerate(rows, first):
        found.learn(number, {item: y for item, y in zip(found.items, row, strict=True) if not np.isnan(y)})


def errors(found: CalibratedMetric, strong: Floats) -> Floats:
    """Of estimates from 20 answers each."""
    assert found.bank is not None
    asked = np.random.default_rng(0).random(strong.shape).argsort(axis=1) < 20
    prior = population_prior(found.bank, len(strong))
    estimates = MapAbility(bank=found.bank, prior=prior)(np.where(asked, strong, np.nan))
    return np.asarray(estimates.mean - strong.mean(axis=1))


def test_promotions_teach_a_bank_of_weak_models_what_strong_ones_do() -> None:
    """The difficulties that weak models never reached are learned from candidates that answered everything."""
    rng = np.random.default_rng(0)
    weak = answers(rng.normal(-2.5, 0.3, 40), 1)
    strong = answers(rng.normal(1.5, 0.4, 60), 2)
    found = metric(bank_of(weak))
    before = errors(found, strong[20:])
    learned(found, strong[:20])
    found.refit(0)
    after = errors(found, strong[20:])
    assert np.abs(after).mean() < 0.5 * np.abs(before).mean()
    assert before.mean() < -0.1
    assert abs(after.mean()) < 0.25 * abs(before.mean())
    assert found.bank is not None
    assert found.bank.calibrators == 60


def test_a_bank_without_responses_stays_as_it_is() -> None:
    bank = replace(bank_of(answers(np.zeros(30), 1)), responses=None)
    found = metric(bank)
    learned(found, answers(np.ones(10), 2))
    found.refit(0)
    assert found.bank is not None
    assert np.array_equal(found.bank.difficulties, bank.difficulties)


def test_a_bank_is_fitted_again_when_a_quarter_is_new_or_the_audit_calls() -> None:
    found = metric(None)
    rows = answers(np.linspace(-1, 1, 20), 3)
    learned(found, rows[:8])
    found.refit(0)
    first = found.bank
    learned(found, rows[8:9], first=8)
    found.refit(1)
    assert found.bank is first
    learned(found, rows[9:10], first=9)
    found.refit(1)
    second = found.bank
    assert second is not first
    learned(found, rows[10:11], first=10)
    found.audit(2, residuals(4.0))
    remedies = [found.checks[2].remedy]
    found.refit(2)
    assert found.bank is not second
    assert [*remedies, found.checks[2].remedy] == ["correct", "refit"]
    assert found.checks[2].z > 3


def residuals(total: float, candidates: int = 12) -> Residuals:
    scatter = np.random.default_rng(0).normal(0, 1, candidates)
    return Residuals(total=total + scatter - scatter.mean(), variance=np.ones(candidates), items=np.full(candidates, 5))


def test_generations_add_up_until_one_is_sure() -> None:
    """What no single generation could show, several show together; a fit starts the count anew."""
    found = metric(None)
    learned(found, answers(np.zeros(5), 1))
    found.refit(0)
    seen = [found.audit(generation, residuals(0.6)) for generation in range(4)]
    assert not seen[0].flagged
    assert seen[3].flagged
    assert seen[3].candidates == 48
    assert found.audit(3, residuals(0.6)).candidates == 48, "a generation that is read twice counts once"
    learned(found, answers(np.zeros(5), 2), first=5)
    found.refit(4)
    assert found.audit(4, residuals(0.6)).candidates == 12


def test_scores_may_leave_the_range_that_a_bank_began_with() -> None:
    loss = ObjectiveConfig(name="loss", task="a", goal="min")
    found = metric(None, loss)
    learned(found, answers(np.zeros(4), 1) * 0.9)
    found.refit(0)
    assert found.bank is not None
    links = [found.bank.link]
    found.learn(9, dict.fromkeys(found.items[:10], 1.7))
    found.refit(1)
    assert [*links, found.bank.link] == ["logistic", "gaussian"]
    fixed = metric(replace(bank_of(answers(np.zeros(30), 1)), responses=None), loss)
    fixed.learn(9, dict.fromkeys(fixed.items[:10], 1.7))
    with pytest.raises(TaskError, match="keeps its responses"):
        fixed.refit(0)


@pytest.mark.parametrize("value", [0.0, 1.0, 3.5, -2.0])
def test_a_constant_metric_is_read_as_that_constant(value: float) -> None:
    found = metric(None)
    learned(found, np.full((3, ITEMS), value))
    found.learn(9, dict.fromkeys(found.items[:10], value))
    found.refit(0)
    assert found.bank is not None
    estimates = MapAbility(bank=found.bank, prior=population_prior(found.bank, 1))(found.stacked([9]))
    assert estimates.mean[0] == pytest.approx(value, abs=0.12)
    assert 0 < estimates.sd[0] < 0.5


def test_without_any_whole_row_few_answers_are_a_start() -> None:
    """All anchors failed: candidates are all that there is."""
    found = metric(None)
    rows = answers(np.zeros(6), 1)
    learned(found, np.where(np.arange(ITEMS) < 10, rows, np.nan))
    found.refit(0)
    assert found.bank is not None
    assert found.bank.dimensions == 1


def test_banks_that_do_not_belong_are_refused() -> None:
    matrix = answers(np.zeros(20), 1)
    with pytest.raises(TaskError, match=r"expected banks of a \(acc\); got one of 'b'"):
        metric(bank_of(matrix, task="b"))
    with pytest.raises(TaskError, match="got one of 'a'"):
        metric(bank_of(matrix, metric="f1"))
    with pytest.raises(TaskError, match="prompts"):
        metric(bank_of(matrix, digest="others"))
    twice = [bank_of(matrix), bank_of(matrix)]
    with pytest.raises(TaskError, match="got two"):
        calibrated(OBJECTIVE.metrics, SPLIT, size=400, digests={"a": "d"}, banks=twice, seed=5)


def test_a_universe_is_what_search_and_banks_share_and_no_more_than_asked() -> None:
    pool = SPLIT.pool["a"]
    assert universe(SPLIT, "a", 400, 5) == pool
    assert len(universe(SPLIT, "a", 30, 5)) == 30
    bank = bank_of(answers(np.zeros(20), 1)).narrowed(pool[10:50])
    assert universe(SPLIT, "a", 400, 5, [bank]) == pool[10:50]
    assert len(universe(SPLIT, "a", 30, 5, [bank])) == 30
    with pytest.raises(TaskError, match="at least 2"):
        universe(SPLIT, "a", 30, 5, [bank.narrowed(pool[10:11])])
