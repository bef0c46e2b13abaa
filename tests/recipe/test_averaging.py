from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform
from evomerge.recipe.averaging import as_linear


def average(operator: str, count: int, power: float, metric: Sequence[float] = ()) -> tuple[float, ...]:
    """The weights of an average of some checkpoints."""
    values = {"power": [power], "metric": metric}
    recipe = Recipe(
        operator=operator,
        options=options_of(OPERATORS[operator], "paper"),
        base=None,
        sources=tuple(f"step{k}" for k in range(count)),
        parameters=tuple((name, Field.constant(values[name], 2)) for name in sorted(OPERATORS[operator].parameters)),
        dtype="bfloat16",
    )
    linear = as_linear(recipe)
    assert (linear.operator, linear.sources, linear.dtype) == ("linear", recipe.sources, "bfloat16")
    assert linear.parameter("weight").layers == 2
    assert {row for _, rows in linear.parameter("weight").by_role() for row in rows} == {
        linear.parameter("weight").at("mlp", 1)
    }
    return linear.parameter("weight").at("mlp", 1)


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        (0.0, [1 / 3, 1 / 3, 1 / 3]),
        (1.0, [1 / 7, 2 / 7, 4 / 7]),
        (2.0, [1 / 21, 4 / 21, 16 / 21]),
        (-1.0, [4 / 7, 2 / 7, 1 / 7]),
    ],
)
def test_weights_follow_a_power_of_the_metric(power: float, expected: list[float]) -> None:
    assert average("metric_average", 3, power, [1.0, 2.0, 4.0]) == pytest.approx(expected, abs=1e-6)


def test_extreme_powers_do_not_overflow() -> None:
    assert average("metric_average", 2, 20.0, [1e9, 1e-6]) == (1.0, 0.0)
    assert average("metric_average", 2, -20.0, [1e9, 1e-6]) == (0.0, 1.0)


def test_weights_are_steps_of_a_decay() -> None:
    assert average("decay_average", 4, 1.0) == (0.25, 0.25, 0.25, 0.25)
    assert average("decay_average", 4, 0.5) == pytest.approx(
        [math.sqrt(k / 4) - math.sqrt((k - 1) / 4) for k in (1, 2, 3, 4)], abs=1e-6
    )
    assert average("decay_average", 4, 100.0) == pytest.approx([0, 0, 0, 1], abs=1e-5)


@given(st.integers(1, 6), st.floats(0.01, 100))
def test_a_decay_ends_at_zero(count: int, power: float) -> None:
    weights = average("decay_average", count, power)
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert min(weights) >= 0
    assert list(weights) == sorted(weights, reverse=power < 1)


def test_other_recipes_are_left_alone() -> None:
    recipe = uniform(["one"], layers=2, dtype="float32")
    assert as_linear(recipe) is recipe
