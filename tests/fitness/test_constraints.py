from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from evomerge.config import ConstraintConfig, ObjectiveConfig
from evomerge.errors import TaskError
from evomerge.fitness import broken, confirm_front, violation
from evomerge.outcome import Responses


def answers(*values: float, first: int = 0, task: str = "safe") -> list[Responses]:
    return [Responses(task=task, metric="acc", items=tuple(range(first, first + len(values))), values=values)]


def limit(**more: Any) -> ConstraintConfig:
    return ConstraintConfig(name="safe", task="safe", **more)


@pytest.mark.parametrize(
    ("constraint", "missing"),
    [
        (limit(at_least=0.5), 0.25),
        (limit(at_least=0.25), 0.0),
        (limit(at_most=0.25), 0.0),
        (limit(at_most=0.0), 0.25),
    ],
)
def test_a_violation_is_what_is_missing_to_the_limit(constraint: ConstraintConfig, missing: float) -> None:
    assert violation(answers(1, 0, 0, 0), {}, [constraint]) == pytest.approx(missing)


def test_violations_add_up_in_their_own_units() -> None:
    both = [limit(at_least=0.5), ConstraintConfig(name="long", task="safe", at_most=0.0)]
    assert violation(answers(1, 0, 0, 0), {}, both) == pytest.approx(0.5)


def test_a_relative_limit_looks_at_the_items_that_both_answered() -> None:
    base = {"base": answers(1, 1, 1, 1, 0, 0)}
    candidate = answers(1, 0, 0, 0, first=2)  # items 2..5, of which the base solves two: one fewer
    assert violation(candidate, base, [limit(at_least=-0.25, relative_to="base")]) == 0.0
    assert violation(candidate, base, [limit(at_least=0.0, relative_to="base")]) == pytest.approx(0.25)


def test_what_is_broken_is_said_in_the_metrics_own_direction() -> None:
    (line,) = broken(answers(1, 1, 1, 0), {}, [limit(at_most=0.5)])
    assert line == "safe 0.750, at most 0.500 was asked"
    (line,) = broken(answers(0, 0), {"base": answers(1, 1)}, [limit(at_least=-0.5, relative_to="base")])
    assert line == "safe -1.000 against base, at least -0.500 was asked"
    assert not list(broken(answers(1, 1), {}, [limit(at_least=1.0)]))


def test_an_anchor_that_failed_cannot_be_compared_with() -> None:
    with pytest.raises(TaskError, match="expected answers of base"):
        violation(answers(1, 1), {}, [limit(at_least=0.0, relative_to="base")])


@pytest.mark.parametrize("limits", [{}, {"at_least": 0.1, "at_most": 0.9}])
def test_a_constraint_has_one_limit(limits: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="expected one limit"):
        limit(**limits)


def test_the_confirmed_front_is_of_those_that_keep_the_constraints() -> None:
    objective = [ObjectiveConfig(name="safe", task="safe")]
    finalists = {0: answers(0, 0, 0, 0), 1: answers(1, 1, 1, 1), 2: answers(1, 1, 0, 0)}
    found = confirm_front(finalists, {"base": 0}, objective, 0.95, excluded={1})
    assert (found.members, found.knee, found.best) == ((2,), 2, {"safe": 2})
    assert set(found.gains) == {1, 2}, "what breaks a constraint is still told"
    everyone = confirm_front(finalists, {"base": 0}, objective, 0.95, excluded={0, 1, 2})
    assert everyone.members == (1,), "where all break one there is nothing to choose by"
