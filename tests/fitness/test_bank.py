import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import TaskError
from evomerge.fitness.estimate import Floats
from evomerge.fitness.irt import ItemBank, content_digest, dimensions_for, fit_bank, load_bank, save_bank

ARRAYS = ("slopes", "difficulties", "dispersion", "mean", "covariance")


def binary(models: int, items: int, dimensions: int = 2, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Responses, their true probabilities, and difficulties."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(0.0, 0.7, (items, dimensions))
    slopes[:, 0] = rng.lognormal(0.3, 0.3, items)
    difficulties = rng.normal(0.0, 1.2, items)
    eta = rng.standard_normal((models, dimensions)) @ slopes.T - difficulties
    chance = 1.0 / (1.0 + np.exp(-eta))
    return (rng.random(eta.shape) < chance).astype(np.float64), chance, difficulties


def fit(responses: Floats, **more: Any) -> ItemBank:
    arguments: dict[str, Any] = {"task": "math", "items": range(responses.shape[1]), "digest": "d"}
    return fit_bank(responses, **(arguments | more))


def sane(bank: ItemBank) -> bool:
    return all(np.isfinite(getattr(bank, name)).all() for name in ARRAYS)


def test_a_fit_finds_difficulties_and_difficulty_order() -> None:
    responses, _, difficulties = binary(600, 40)
    bank = fit(responses, dimensions=2)
    assert np.corrcoef(bank.difficulties, difficulties)[0, 1] > 0.95
    assert (bank.calibrators, bank.dimensions, bank.link) == (600, 2, "logistic")


def test_missing_responses_change_little() -> None:
    responses, _, difficulties = binary(600, 40)
    holes = np.random.default_rng(1).random(responses.shape) < 0.4
    bank = fit(np.where(holes, np.nan, responses), dimensions=2)
    assert np.corrcoef(bank.difficulties, difficulties)[0, 1] > 0.93


def test_a_fit_is_the_same_every_time() -> None:
    responses, _, _ = binary(60, 20)
    a, b = fit(responses), fit(responses)
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


def test_dimensions_follow_the_number_of_calibrators() -> None:
    assert [dimensions_for(n) for n in (1, 29, 30, 49, 50, 99, 100, 999, 1000)] == [0, 0, 1, 1, 2, 2, 5, 5, 10]


def test_sparse_rows_count_by_their_answers() -> None:
    responses, _, _ = binary(200, 20)
    sparse = np.where(np.random.default_rng(0).random(responses.shape) < 0.9, np.nan, responses)
    assert np.unique(fit(sparse).slopes).size == 1
    assert fit(responses).dimensions == 5


def test_few_calibrators_get_rasch() -> None:
    responses, _, _ = binary(12, 30)
    bank = fit(responses)
    assert bank.slopes.shape == (30, 1)
    assert np.unique(bank.slopes).size == 1
    easiest, hardest = responses.mean(axis=0).argmax(), responses.mean(axis=0).argmin()
    assert bank.difficulties[easiest] < bank.difficulties[hardest]


def test_a_refit_goes_on_from_an_earlier_bank() -> None:
    responses, chance, _ = binary(400, 40)
    start = fit(responses[:350], dimensions=2)
    warm, cold = fit(responses, start=start, dimensions=2), fit(responses, dimensions=2)
    assert warm.calibrators == 400
    assert np.abs(warm.difficulties - cold.difficulties).mean() < 0.1
    assert np.abs(warm.mean - cold.mean).max() < 1.0
    assert chance.shape == responses.shape


def test_a_weight_of_two_is_the_row_twice() -> None:
    responses, _, _ = binary(80, 12)
    twice = fit(np.concatenate([responses, responses[:10]]), dimensions=1)
    weighted = fit(responses, dimensions=1, weights=np.where(np.arange(80) < 10, 2.0, 1.0))
    assert np.allclose(twice.difficulties, weighted.difficulties, atol=0.02)
    assert np.allclose(twice.covariance, weighted.covariance, atol=0.02)
    for wrong in (np.ones(3), np.zeros(80), np.full(80, np.nan)):
        with pytest.raises(TaskError, match="weights"):
            fit(responses, weights=wrong)


def test_a_refit_of_other_prompts_is_refused() -> None:
    responses, _, _ = binary(40, 10)
    with pytest.raises(TaskError, match="prompts"):
        fit(responses, digest="other", start=fit(responses))
    with pytest.raises(TaskError, match="same items"):
        fit(responses[:, :8], start=fit(responses))


@pytest.mark.parametrize("models", [3, 40, 120])
@pytest.mark.parametrize("kind", ["all right", "all wrong", "no difference", "dead items", "twins"])
def test_odd_matrices_give_finite_banks(models: int, kind: str) -> None:
    responses, _, _ = binary(models, 8)
    if kind == "all right":
        responses[:] = 1.0
    elif kind == "all wrong":
        responses[:] = 0.0
    elif kind == "no difference":
        responses[:] = responses[0]
    elif kind == "dead items":
        responses[:, 0], responses[:, 1], responses[:, 2] = 0.0, 1.0, np.nan
    else:
        responses[:, 1] = responses[:, 0]
    bank = fit(responses)
    assert sane(bank)
    assert np.abs(bank.difficulties).max() < 15
    if kind == "twins":
        assert np.allclose(bank.difficulties[0], bank.difficulties[1], atol=0.05)


def test_three_calibrators_and_five_items_with_rows_and_columns_missing() -> None:
    responses = np.array([[1, 0, 1, np.nan, 0], [np.nan] * 5, [1, 1, 1, np.nan, 0]])
    bank = fit(responses)
    assert sane(bank)
    assert bank.calibrators == 2


@pytest.mark.parametrize(
    "responses",
    [np.empty((0, 3)), np.full((2, 3), np.nan), np.array([[1.0, 0.0, np.inf]]), np.ones(3), np.ones((2, 2))],
)
def test_useless_matrices_are_refused(responses: Floats) -> None:
    with pytest.raises(TaskError, match="expected"):
        fit_bank(responses, task="math", items=range(3), digest="d")


def test_no_items_are_refused() -> None:
    with pytest.raises(TaskError, match="expected"):
        fit_bank(np.empty((3, 0)), task="math", items=(), digest="d")


def test_graded_scores_keep_the_logistic_link_and_are_less_dispersed() -> None:
    _, chance, _ = binary(300, 20)
    rng = np.random.default_rng(2)
    graded = rng.beta(chance * 9, (1 - chance) * 9)
    bank = fit(graded, dimensions=2)
    assert bank.link == "logistic"
    assert 0.05 < np.median(bank.dispersion) < 0.2  # Beta with precision 9: 1 / (1 + 9)


def test_unbounded_scores_get_the_gaussian_link_in_their_own_units() -> None:
    rng = np.random.default_rng(3)
    ability, level = rng.standard_normal(300), rng.normal(50.0, 10.0, 15)
    responses = level + 8.0 * ability[:, None] + 3.0 * rng.standard_normal((300, 15))
    bank = fit(responses, dimensions=1)
    assert bank.link == "gaussian"
    assert np.allclose(bank.linear(bank.mean[None])[0], responses.mean(axis=0), atol=1.0)
    assert np.allclose(np.sqrt(bank.dispersion), 3.0, atol=0.8)


def test_digest_knows_task_items_and_prompts() -> None:
    a = content_digest("math", {0: "1+1", 1: "2+2"})
    assert a == content_digest("math", {1: "2+2", 0: "1+1"})
    others = [("maths", {0: "1+1", 1: "2+2"}), ("math", {0: "1+1", 2: "2+2"}), ("math", {0: "1+1", 1: "2+2="})]
    assert a not in {content_digest(*other) for other in others}


def test_a_bank_refuses_other_tasks_prompts_and_items() -> None:
    bank = fit(binary(40, 10)[0])
    bank.check("math", "d")
    with pytest.raises(TaskError, match="'arc'"):
        bank.check("arc", "d")
    with pytest.raises(TaskError, match="prompts"):
        bank.check("math", "e")
    assert bank.columns([3, 1]).tolist() == [3, 1]
    with pytest.raises(TaskError, match="77"):
        bank.columns([3, 77])


def test_a_bank_survives_its_file(tmp_path: Path) -> None:
    bank = fit(binary(120, 10)[0])
    save_bank(bank, tmp_path / "bank.npz")
    back = load_bank(tmp_path / "bank.npz")
    assert all(np.array_equal(getattr(bank, name), getattr(back, name)) for name in ARRAYS)
    assert (back.task, back.digest, back.items, back.link, back.calibrators) == (
        "math",
        "d",
        bank.items,
        "logistic",
        120,
    )
    with zipfile.ZipFile(tmp_path / "bank.npz") as file:
        assert set(file.namelist()) == {f"{name}.npy" for name in (*ARRAYS, "header", "responses")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slopes": np.full((10, 1), np.nan)}, "finite slopes"),
        ({"difficulties": np.full(10, np.inf)}, "finite difficulties"),
        ({"difficulties": np.zeros(9)}, "difficulties of shape"),
        ({"slopes": np.zeros((10, 0))}, "at least 1 x 1"),
        ({"dispersion": np.zeros(10)}, "above 0"),
        ({"covariance": -np.eye(1)}, "positive definite"),
        ({"items": (0,) * 10}, "distinct"),
        ({"link": "probit"}, "link"),
    ],
)
def test_impossible_banks_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        replace(fit(binary(20, 10)[0]), **change)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    bank, path = fit(binary(20, 10)[0]), tmp_path / "bank.npz"
    save_bank(bank, path)
    whole = path.read_bytes()
    with np.load(path) as file:
        contents = dict(file)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TaskError, match="expected an item bank"):
        load_bank(path)
    np.savez(path, **{**contents, "slopes": np.full((10, 1), np.nan)})
    with pytest.raises(TaskError, match="finite slopes"):
        load_bank(path)
    np.savez(path, **{**contents, "slopes": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(TaskError, match="expected an item bank"):
        load_bank(path)
    np.savez(path, **{**contents, "header": np.array("[]")})
    with pytest.raises(TaskError, match="expected an item bank"):
        load_bank(path)
    path.write_text("no bank")
    with pytest.raises(TaskError, match="expected an item bank"):
        load_bank(path)
    with pytest.raises(TaskError, match="no such file"):
        load_bank(tmp_path / "missing.npz")
