from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.config import ObjectiveConfig
from evomerge.errors import TaskError
from evomerge.fitness import MEAN, confirm_front, paired_difference, scores, scores_and_mean
from evomerge.fitness.honest import membership_probability
from evomerge.outcome import Responses

LEVEL = 0.95


def responses(task: str, values: Sequence[float], metric: str = "acc", first: int = 0) -> Responses:
    return Responses(task=task, metric=metric, items=tuple(range(first, first + len(values))), values=tuple(values))


def objective(name: str, task: str | None = None, **more: Any) -> ObjectiveConfig:
    return ObjectiveConfig(name=name, task=task or name, **more)


A = objective("a")


def test_a_difference_is_the_difference_of_the_scores() -> None:
    better = [responses("a", [1, 1, 1, 0, 1, 1]), responses("b", [0.2, 0.4, 0.5])]
    worse = [responses("a", [1, 0, 1, 0, 0, 1]), responses("b", [0.9, 0.1, 0.7])]
    objectives = [objective("a", weight=2.0), objective("b", goal="min")]
    found = paired_difference(better, worse, objectives, LEVEL)
    expected = scores_and_mean(better, objectives)[1].mean - scores_and_mean(worse, objectives)[1].mean
    assert found.mean == pytest.approx(expected)
    assert found.low < found.mean < found.high
    assert found.items == 9


def test_swapping_turns_the_difference_around() -> None:
    a, b = [responses("a", [1, 1, 0, 1])], [responses("a", [0, 1, 0, 0])]
    there, back = paired_difference(a, b, [A], LEVEL), paired_difference(b, a, [A], LEVEL)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))


def test_a_minimized_metric_gains_by_falling() -> None:
    a, b = [responses("a", [1.0, 2.0, 3.0])], [responses("a", [2.0, 3.5, 4.0])]
    found = paired_difference(a, b, [objective("a", goal="min")], LEVEL)
    assert found.mean == pytest.approx(3.5 / 3)


def test_only_common_items_count() -> None:
    a, b = [responses("a", [9.0, 9.0, 1.0, 2.0])], [responses("a", [0.5, 1.0, 7.0], first=2)]
    found = paired_difference(a, b, [A], LEVEL)
    assert (found.items, found.mean) == (2, 0.75)


def test_candidates_without_common_items() -> None:
    with pytest.raises(TaskError, match="expected at least 2 items that both candidates answered; got 0"):
        paired_difference([responses("a", [1, 0])], [responses("a", [1, 0], first=9)], [A], LEVEL)


def test_equal_answers_prove_nothing() -> None:
    same = [responses("a", [1] * 50)]
    found = paired_difference(same, same, [A], LEVEL)
    assert found.low < 0 == found.mean < found.high


def test_pairing_helps_when_candidates_agree_on_what_is_hard() -> None:
    hard = [float(i % 2) for i in range(200)]
    a, b = [responses("a", hard)], [responses("a", [0.0] * 10 + hard[10:])]
    paired = paired_difference(a, b, [A], LEVEL)
    (first,), (second,) = scores(a, [A]), scores(b, [A])
    assert paired.high - paired.low < 0.5 * 2 * 1.97 * np.hypot(first.se, second.se)


def test_more_comparisons_widen_the_interval() -> None:
    a, b = [responses("a", [1, 1, 0, 1] * 9)], [responses("a", [0, 1, 0, 0] * 9)]
    one, many = paired_difference(a, b, [A], LEVEL), paired_difference(a, b, [A], LEVEL, comparisons=60)
    assert many.low < one.low < one.high < many.high


def test_objectives_on_one_task_count_their_items_once() -> None:
    a = [responses("a", [1, 1, 0, 1, 1]), responses("a", [0.3, 0.8, 0.1, 0.9, 0.7], "f1")]
    b = [responses("a", [0, 1, 0, 1, 0]), responses("a", [0.1, 0.9, 0.1, 0.5, 0.2], "f1")]
    one, twice = objective("f", "a", metric="f1"), objective("g", "a", metric="f1")
    assert paired_difference(a, b, [A, one], LEVEL).items == 5
    single, double = paired_difference(a, b, [one], LEVEL), paired_difference(a, b, [one, twice], LEVEL)
    assert (single.low, single.high) == pytest.approx((double.low, double.high))


def simulate(
    draw: np.random.Generator, count: int, both: float, gained: float, lost: float
) -> tuple[list[float], list[float]]:
    """Answers of two candidates: both right, only a right, only b right, or both wrong."""
    kind = draw.choice(4, size=count, p=[both, gained, lost, 1 - both - gained - lost])
    return np.isin(kind, (0, 1)).astype(float).tolist(), np.isin(kind, (0, 2)).astype(float).tolist()


@pytest.mark.parametrize(
    ("count", "both", "gained", "lost"),
    [
        (30, 0.4, 0.2, 0.1),
        (50, 0.9, 0.04, 0.02),
        (100, 0.5, 0.2, 0.2),
        (100, 0.0, 0.95, 0.02),
        (200, 0.97, 0.005, 0.005),
    ],
)
@pytest.mark.parametrize("comparisons", [1, 20])
def test_intervals_hold_what_they_promise(
    count: int, both: float, gained: float, lost: float, comparisons: int
) -> None:
    draw = np.random.default_rng(7)
    trials, covered = 1500, 0
    for _ in range(trials):
        a, b = simulate(draw, count, both, gained, lost)
        found = paired_difference([responses("a", a)], [responses("a", b)], [A], LEVEL, comparisons)
        covered += found.low <= gained - lost <= found.high
    nominal = 1 - (1 - LEVEL) / comparisons
    assert covered / trials >= nominal - 2 * np.sqrt(nominal * (1 - nominal) / trials)


def test_the_best_of_many_equals_is_not_called_better() -> None:
    draw, false_claims, trials = np.random.default_rng(11), 0, 200
    for _ in range(trials):
        field = {i: [responses("a", draw.binomial(1, 0.6, 80).tolist())] for i in range(12)}
        found = confirm_front(field, {"base": 0, "rev": 1}, [A], LEVEL)
        false_claims += any(found.beaten(i) for i in range(2, 12))
    assert false_claims / trials <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


def two(a: float, b: float, count: int = 40) -> list[Responses]:
    return [
        responses(task, [1.0] * round(p * count) + [0.0] * (count - round(p * count)))
        for task, p in (("a", a), ("b", b))
    ]


FIELD = {0: two(0.2, 0.2), 1: two(0.9, 0.1), 2: two(0.1, 0.9), 5: two(0.8, 0.75), 7: two(0.5, 0.5), 9: two(0.85, 0.3)}
ANCHORS = {"base": 0, "rev": 1, "sort": 2}
OBJECTIVES = [objective("first", "a"), objective("second", "b")]


def test_the_confirmed_front() -> None:
    found = confirm_front(FIELD, ANCHORS, OBJECTIVES, LEVEL)
    assert found.members == (1, 2, 5, 9)
    assert found.knee == 5
    assert found.best == {"first": 1, "second": 2}


def test_gains_of_every_newcomer_over_every_anchor() -> None:
    found = confirm_front(FIELD, ANCHORS, OBJECTIVES, LEVEL)
    assert found.gains.keys() == {5, 7, 9}
    assert found.gains[5].keys() == ANCHORS.keys()
    assert found.gains[5]["rev"].keys() == {MEAN, "first", "second"}
    assert found.gains[5]["rev"]["second"] == paired_difference(FIELD[5], FIELD[1], OBJECTIVES[1:], LEVEL, 27)
    assert found.gains[5]["rev"][MEAN] == paired_difference(FIELD[5], FIELD[1], OBJECTIVES, LEVEL, 27)


def test_who_is_beaten() -> None:
    found = confirm_front(FIELD, ANCHORS, OBJECTIVES, LEVEL)
    assert found.beaten(5) == ("base", "rev", "sort")
    assert found.beaten(7) == ("base",)
    assert found.beaten(1) == ()


def test_minimized_objectives_turn_the_front_around() -> None:
    turned = [objective("first", "a", goal="min"), objective("second", "b", goal="min")]
    found = confirm_front(FIELD, ANCHORS, turned, LEVEL)
    assert found.best == {"first": 2, "second": 1}
    assert 5 not in found.members
    assert found.gains[5]["base"]["first"].high < 0


def test_anchors_alone() -> None:
    found = confirm_front({i: FIELD[i] for i in (0, 1, 2)}, ANCHORS, OBJECTIVES, LEVEL)
    assert (found.members, found.gains) == ((0, 1, 2), {})


def test_a_place_on_the_front_is_as_sure_as_the_items_make_it() -> None:
    """A beats B on 6 of 10 items that differ: the bootstrap says so in P(sum of 10 signs >= 0) of the draws."""
    generator = np.random.default_rng(0)
    common = generator.integers(0, 2, 90).tolist()
    finalists = {
        1: [responses("a", [*common, *[1] * 6, *[0] * 4])],
        2: [responses("a", [*common, *[0] * 6, *[1] * 4])],
        3: [responses("a", [0] * 100)],
    }
    found = membership_probability(finalists, [A])
    assert found[3] == 0.0
    assert 0.68 < found[1] < 0.82
    assert 0.22 < found[2] < 0.38
    assert found == membership_probability(finalists, [A]), "reports of one run must agree"


def test_candidates_that_trade_objectives_off_are_both_sure() -> None:
    objectives = [A, objective("b", goal="min")]
    finalists = {
        1: [responses("a", [1] * 20), responses("b", [1.0] * 20)],
        2: [responses("a", [0] * 20), responses("b", [0.0] * 20)],
    }
    assert membership_probability(finalists, objectives) == {1: 1.0, 2: 1.0}


def test_places_on_the_front_need_the_same_items() -> None:
    with pytest.raises(TaskError, match="the same items"):
        membership_probability({1: [responses("a", [1, 0])], 2: [responses("a", [1, 0], first=1)]}, [A])
