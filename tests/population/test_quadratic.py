"""Quadratics with a posterior: what they know, and how little."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.population.quadratic import Quadratic, least_known, tamed, unknowns

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-1, 1, (40, 3))


def truth(points: np.ndarray) -> np.ndarray:
    return np.stack([(points**2).sum(axis=1), points[:, 0] * points[:, 1] - points[:, 2]], axis=1)


def test_unknowns_are_counted() -> None:
    assert [unknowns(coordinates) for coordinates in (1, 2, 8)] == [3, 6, 45]


def test_a_quadratic_is_found() -> None:
    models = Quadratic.fitted(POINTS, truth(POINTS))
    elsewhere = RNG.uniform(-1, 1, (20, 3))
    assert models.mean(elsewhere) == pytest.approx(truth(elsewhere), abs=5e-3)


def test_draws_spread_as_the_posterior_says() -> None:
    noisy = truth(POINTS) + RNG.normal(0, (0.1, 0.3), (40, 2))
    models = Quadratic.fitted(POINTS, noisy)
    assert np.sqrt(models.noise) == pytest.approx([0.1, 0.3], rel=0.35)
    near, far = np.zeros((1, 3)), np.full((1, 3), 3.0)
    drawn = models.drawn(np.vstack([near, far]), 4000, np.random.default_rng(1))
    assert drawn.shape == (4000, 2, 2)
    assert np.abs(drawn.mean(axis=0) - models.mean(np.vstack([near, far]))).max() < 0.1
    spread = drawn.std(axis=0)
    assert (spread[1] > 5 * spread[0]).all()
    assert spread[:, 1] / spread[:, 0] == pytest.approx(np.sqrt(models.noise[1] / models.noise[0]), rel=0.1)


@given(arrays(float, (12, 2), elements=st.floats(-1e300, 1e300)))
def test_any_finite_costs_are_survived(costs: np.ndarray) -> None:
    models = Quadratic.fitted(POINTS[:12], tamed(costs))
    assert np.isfinite(models.drawn(POINTS, 4, np.random.default_rng(0))).all()
    assert (models.noise > 0).all()


class TestLeastKnown:
    def test_it_tells_more_than_as_many_at_random(self) -> None:
        chosen = least_known(POINTS, POINTS[:0], 12)

        def told(rows: np.ndarray) -> float:
            precision = Quadratic.fitted(rows, truth(rows)).precision
            return float(np.linalg.slogdet(precision)[1])

        random = [told(POINTS[RNG.choice(40, 12, replace=False)]) for _ in range(50)]
        assert told(POINTS[chosen]) > max(random)

    @pytest.mark.parametrize("known", [0, 1, 30])
    def test_none_is_chosen_twice(self, known: int) -> None:
        chosen = least_known(POINTS, POINTS[:known], 40)
        assert sorted(chosen) == [*range(40)]

    def test_what_is_known_is_chosen_last(self) -> None:
        candidates = np.array([[1.0, 1.0], [0.9, 0.9], [-1.0, 1.0]])
        assert least_known(candidates, candidates[:1], 1) == [2]
