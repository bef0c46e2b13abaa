"""Regions in which quadratics are believed, and batches that are expected to improve the front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.config import Acquisition
from evomerge.pareto import hypervolume
from evomerge.population.trust_region import TrustRegion, _improving

ACQUISITIONS: tuple[Acquisition, ...] = ("mean", "improvement")


def region(acquisition: Acquisition, coordinates: int = 2, objectives: int = 2, seed: int = 0) -> TrustRegion:
    start = np.full(coordinates, 0.5)
    return TrustRegion(start=start, objectives=objectives, acquisition=acquisition, seed=seed)


def two_spheres(points: np.ndarray) -> np.ndarray:
    return np.stack([((points - centre) ** 2).mean(axis=1) for centre in (0.3, 0.8)], axis=1)


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
class TestEveryAcquisition:
    def test_the_front_is_found(self, acquisition: Acquisition) -> None:
        of = region(acquisition)
        for _ in range(5):
            points = of.propose(8)
            of.learn(points, two_spheres(points))
        assert hypervolume(of.costs, (0.3, 0.3)) > 0.95 * (0.3**2 - 0.5**4 / 6)

    def test_any_number_is_proposed(self, acquisition: Acquisition) -> None:
        of = region(acquisition)
        for count in (1, 7, 300, 2):
            points = of.propose(count)
            assert points.shape == (count, 2)
            assert ((points >= 0) & (points <= 1)).all()
            of.learn(points, two_spheres(points))

    @settings(max_examples=10, deadline=None)
    @given(st.integers(0, 2**32), st.sampled_from([0.0, 1e-300, 1.0, 1e300]), st.integers(1, 12))
    def test_any_costs_are_survived_and_repeated(
        self, acquisition: Acquisition, seed: int, size: float, objectives: int
    ) -> None:
        one, same = (region(acquisition, objectives=objectives, seed=seed) for _ in range(2))
        rng = np.random.default_rng(seed)
        for _ in range(3):
            points = one.propose(5)
            assert np.array_equal(points, same.propose(5))
            costs = size * rng.choice([-1.0, 0.0, 0.5, 1.0], (5, objectives))
            one.learn(points, costs)
            same.learn(points, costs)


def test_what_goes_on_is_not_the_luckiest() -> None:
    of = region("mean", objectives=1)
    points = np.random.default_rng(0).uniform(0, 1, (40, 2))
    costs = ((points - 0.4) ** 2).sum(axis=1, keepdims=True)
    lucky = int(np.argsort(costs[:, 0])[10])
    costs[lucky] = costs.min() - 0.05
    of.learn(points, costs)
    chosen = of.best((1.0,))
    assert not np.array_equal(chosen, points[lucky])
    assert any(np.array_equal(chosen, point) for point in points)
    assert np.linalg.norm(chosen - 0.4) < 0.15


class TestImproving:
    REFERENCE = np.array([1.0, 1.0])
    TOLD = np.array([[0.8, 0.2], [0.2, 0.8]])

    def chosen(self, drawn: np.ndarray, count: int) -> list[int]:
        return _improving(drawn, len(self.TOLD), self.REFERENCE, count, np.random.default_rng(0))

    @pytest.mark.parametrize("seed", range(5))
    def test_without_doubt_it_is_the_largest_step_in_hypervolume(self, seed: int) -> None:
        candidates = np.random.default_rng(seed).uniform(0.3, 1.1, (6, 2))
        volumes = [hypervolume(np.vstack([self.TOLD, row]), self.REFERENCE) for row in candidates]
        drawn = np.repeat(np.vstack([self.TOLD, candidates])[None], 20_000, axis=0)
        assert volumes[self.chosen(drawn, 1)[0]] > max(volumes) - 0.01

    def test_the_second_fills_another_gap(self) -> None:
        candidates = np.array([[0.4, 0.4], [0.41, 0.41], [0.1, 0.79]])
        drawn = np.repeat(np.vstack([self.TOLD, candidates])[None], 2000, axis=0)
        assert self.chosen(drawn, 2) == [0, 2]

    def test_doubt_is_worth_something(self) -> None:
        sure = np.array([0.75, 0.35])
        drawn = np.repeat(np.vstack([self.TOLD, sure, sure])[None], 2000, axis=0)
        drawn[:, 3] += np.random.default_rng(1).normal(0, 0.2, (2000, 2))
        assert self.chosen(drawn, 1) == [1]

    def test_no_more_than_there_are(self) -> None:
        drawn = np.repeat(np.vstack([self.TOLD, [[2.0, 2.0]]])[None], 4, axis=0)
        assert self.chosen(drawn, 5) == [0]
