"""Pareto arithmetic against slow, obvious definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.pareto import best, crowding_distance, hypervolume, knee, nondominated, shortlist

Costs = list[tuple[float, ...]]


def cost_lists(most: int = 12) -> st.SearchStrategy[Costs]:
    """Small whole numbers, so that ties and duplicates are common."""
    rows = st.integers(1, 4).map(lambda m: st.tuples(*[st.integers(0, 4).map(float)] * m))
    return rows.flatmap(lambda row: st.lists(row, min_size=1, max_size=most))


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(cost_lists())
def test_nondominated_is_the_definition(costs: Costs) -> None:
    assert nondominated(costs) == [
        i for i, row in enumerate(costs) if not any(dominates(other, row) for other in costs)
    ]


@given(cost_lists(), st.randoms(use_true_random=False))
def test_front_does_not_depend_on_row_order(costs: Costs, random: object) -> None:
    order = list(range(len(costs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = [costs[i] for i in order]
    assert sorted(order[i] for i in nondominated(shuffled)) == nondominated(costs)


@given(cost_lists(most=6))
def test_hypervolume_counts_unit_cells(costs: Costs) -> None:
    cells = np.ndindex(*(4,) * len(costs[0]))
    dominated = sum(any(all(c <= x for c, x in zip(row, cell, strict=True)) for row in costs) for cell in cells)
    assert hypervolume(costs, (4.0,) * len(costs[0])) == pytest.approx(dominated)


def test_hypervolume_of_nothing() -> None:
    assert hypervolume([], (1.0, 1.0)) == 0.0
    assert hypervolume([(2.0, 0.0)], (1.0, 1.0)) == 0.0
    with pytest.raises(ValueError, match="needs 2 costs"):
        hypervolume([(0.0, 0.0)], (1.0,))


@given(cost_lists(), st.floats(0.01, 100), st.floats(-50, 50))
def test_knee_is_on_the_front_and_does_not_depend_on_units(costs: Costs, factor: float, offset: float) -> None:
    index = knee(costs)
    assert index in nondominated(costs)
    distance = _distances(costs)
    assert distance[index] == pytest.approx(min(distance.values()), abs=1e-9)
    equals = [sum(costs[i]) for i, d in distance.items() if d == min(distance.values())]
    assert sum(costs[index]) <= min(equals) + 1e-9
    moved = _distances([tuple(factor * x + offset for x in row) for row in costs])
    assert moved[index] == pytest.approx(distance[index])


def _distances(costs: Costs) -> dict[int, float]:
    front = nondominated(costs)
    low = [min(costs[i][k] for i in front) for k in range(len(costs[0]))]
    high = [max(costs[i][k] for i in front) for k in range(len(costs[0]))]

    def share(value: float, k: int) -> float:
        return (value - low[k]) / (high[k] - low[k]) if high[k] > low[k] else 0.0

    return {i: sum(share(value, k) ** 2 for k, value in enumerate(costs[i])) for i in front}


def test_knee_by_hand() -> None:
    assert knee([(5.0, 7.0)]) == 0
    assert knee([(0.0, 10.0), (2.0, 2.0), (10.0, 0.0)]) == 1
    assert knee([(0.0, 3.0), (3.0, 0.0)]) == 0, "ties go to the first"
    assert knee([(-0.586, -0.672), (-1.0, -0.609)]) == 1, "of a front of two, the one that is better on the whole"
    assert knee([(1.0, 5.0, 7.0), (0.0, 6.0, 7.0), (0.4, 5.2, 7.0)]) == 2, "an axis without spread does not count"
    assert knee([(9.0, 9.0), (0.0, 1.0), (1.0, 0.0), (0.1, 0.1)]) == 3, "dominated rows do not stretch the axes"


def test_the_best_of_an_objective_by_hand() -> None:
    costs = [(0.0, 3.0, 3.0), (0.0, 9.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.0, 1.0, 4.0)]
    assert best(costs, 0) == 3, "of equals, the knee among them"
    assert best(costs, 1) == 2
    assert best([(2.0, 1.0), (1.0, 1.0)], 1) == 1, "a dominated row is never the best"


@given(cost_lists(), st.integers(0, 3))
def test_the_best_of_an_objective_is_on_the_front(costs: Costs, objective: int) -> None:
    objective %= len(costs[0])
    index = best(costs, objective)
    assert index in nondominated(costs)
    assert costs[index][objective] == pytest.approx(min(row[objective] for row in costs), abs=1e-9)


def test_crowding_distance_by_hand() -> None:
    distance = crowding_distance([(0.0, 4.0), (1.0, 2.0), (3.0, 1.0), (4.0, 0.0)])
    assert distance.tolist() == [math.inf, 3 / 4 + 3 / 4, 3 / 4 + 2 / 4, math.inf]
    assert crowding_distance([(1.0, 2.0)] * 3).tolist() == [0.0, 0.0, 0.0]
    assert crowding_distance([]).tolist() == []


@given(cost_lists())
def test_shortlist_is_the_front_with_the_knee_first(costs: Costs) -> None:
    order = shortlist(costs)
    assert sorted(order) == nondominated(costs)
    assert order[0] == knee(costs)


def test_shortlist_puts_ends_before_crowded_rows() -> None:
    assert shortlist([(0.0, 9.0), (1.0, 2.0), (2.0, 1.0), (2.1, 0.9), (9.0, 0.0)])[1:3] == [0, 4]
    assert shortlist([]) == []


@pytest.mark.parametrize("costs", [[(math.nan, 0.0)], [(0.0, math.inf)], [1.0, 2.0]])
def test_bad_costs_are_refused(costs: list[tuple[float, ...]]) -> None:
    for function in (nondominated, knee, crowding_distance, shortlist):
        with pytest.raises(ValueError, match="costs must"):
            function(costs)


def test_no_knee_of_nothing() -> None:
    assert nondominated([]) == []
    with pytest.raises(ValueError, match="at least one candidate"):
        knee([])
    with pytest.raises(ValueError, match="at least one candidate"):
        best([], 0)
