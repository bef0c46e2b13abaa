from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.fitness.racing import front_probability, halved, survival_probability, undecided
from evomerge.rng import stream


def test_what_is_known_exactly_is_decided() -> None:
    means = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    none = np.zeros_like(means)
    assert front_probability(means, none, stream(0, "race")).tolist() == [1.0, 1.0, 0.0]
    assert survival_probability(means[:, :1], none[:, :1], 2, stream(0, "race")).tolist() == [1.0, 1.0, 0.0]


def test_equals_share_the_places() -> None:
    means, sds = np.zeros((4, 1)), np.ones((4, 1))
    survival = survival_probability(means, sds, 1, stream(0, "race"), draws=4000)
    assert survival.sum() == pytest.approx(1.0)
    assert survival == pytest.approx([0.25] * 4, abs=0.03)


def test_the_difference_of_two_follows_the_normal_distribution() -> None:
    """P(a > b) of N(0.1, 0.1^2) and N(0, 0.1^2) is Phi(0.1 / (0.1 sqrt 2)) = 0.760."""
    means, sds = np.array([[0.1], [0.0]]), np.full((2, 1), 0.1)
    front = front_probability(means, sds, stream(1, "race"), draws=8000)
    assert front == pytest.approx([0.760, 0.240], abs=0.02)


def test_a_race_goes_on_where_it_is_open_and_more_items_help() -> None:
    probabilities = np.array([0.99, 0.5, 0.5, 0.02])
    sds = np.array([[0.2, 0.2], [0.2, 0.01], [0.01, 0.01], [0.2, 0.2]])
    assert undecided(probabilities, sds, sure=0.95, target_sd=0.02).tolist() == [False, True, False, False]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
def test_the_better_half_goes_on(scores: list[float]) -> None:
    kept = halved(np.array(scores))
    assert kept.sum() == (len(scores) + 1) // 2
    lost = [score for score, stays in zip(scores, kept, strict=True) if not stays]
    assert all(score >= max(lost, default=-2.0) for score, stays in zip(scores, kept, strict=True) if stays)


def test_equal_streams_give_equal_probabilities() -> None:
    means, sds = np.array([[0.1, 0.2], [0.2, 0.1]]), np.full((2, 2), 0.1)
    first, second = (front_probability(means, sds, stream(3, "race", 4)) for _ in range(2))
    assert first.tolist() == second.tolist()
