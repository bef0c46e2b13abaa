import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.config import ObjectiveConfig
from evomerge.errors import TaskError
from evomerge.fitness import Estimate, scores, scores_and_mean
from evomerge.outcome import Responses


def responses(task: str, values: Sequence[float], metric: str = "acc", first: int = 0) -> Responses:
    return Responses(task=task, metric=metric, items=tuple(range(first, first + len(values))), values=tuple(values))


def objective(name: str, task: str | None = None, **more: Any) -> ObjectiveConfig:
    return ObjectiveConfig(name=name, task=task or name, **more)


def test_scores_come_in_the_order_of_the_objectives() -> None:
    found = scores(
        [responses("a", [0, 0, 0, 1]), responses("b", [1, 1, 0, 1])],
        [objective("b"), objective("x", "a"), objective("a")],
    )
    assert [e.mean for e in found] == [0.75, 0.25, 0.25]
    assert [e.items for e in found] == [4, 4, 4]


def test_a_minimized_metric_is_turned_around() -> None:
    data = [responses("a", [3.0, 5.0, 1.0])]
    (plain,), (turned,) = scores(data, [objective("a")]), scores(data, [objective("a", goal="min")])
    assert (plain.mean, turned.mean) == (3.0, -3.0)
    assert plain.se == turned.se == pytest.approx(2.0 / math.sqrt(3))


@settings(derandomize=True)
@given(right=st.integers(0, 30), wrong=st.integers(0, 30), goal=st.sampled_from(["max", "min"]))
def test_right_or_wrong_never_has_a_standard_error_of_0(right: int, wrong: int, goal: str) -> None:
    if right + wrong < 2:
        return
    (estimate,) = scores([responses("a", [1] * right + [0] * wrong)], [objective("a", goal=goal)])
    share, count = (right + 2) / (right + wrong + 4), right + wrong + 4
    assert estimate.se >= math.sqrt(share * (1 - share) / count) - 1e-12 > 0


def test_the_mean_weighs_objectives() -> None:
    data = [responses("a", [0.0, 1.0, 2.0]), responses("b", [10.0, 10.0, 13.0, 11.0])]
    objectives = [objective("a", weight=3.0), objective("b", weight=1.0, goal="min")]
    (a, b), mean = scores_and_mean(data, objectives)
    assert mean.mean == pytest.approx(0.75 * a.mean + 0.25 * b.mean)
    assert mean.se == pytest.approx(math.hypot(0.75 * a.se, 0.25 * b.se))
    assert mean.items == 7


def test_objectives_on_one_task_share_its_items() -> None:
    first = [0.1, 0.7, 0.4, 0.9, 0.2]
    second = [2.0 - value for value in first]
    data = [responses("a", first, "f1"), responses("a", second, "bleu")]
    objectives = [objective("f1", "a", metric="f1"), objective("bleu", "a", metric="bleu")]
    assert scores_and_mean(data, objectives)[1].items == 5
    assert scores_and_mean(data, objectives)[1].se == pytest.approx(0.0, abs=1e-9)  # one rises as the other falls
    both = [objectives[0], objective("again", "a", metric="f1")]
    assert scores_and_mean(data, both)[1].se == pytest.approx(scores(data, both)[0].se)


def test_the_interval_is_students() -> None:
    low, high = Estimate(mean=1.0, se=0.5, items=10, freedom=9, centre=0.9).interval(0.95)
    assert (low, high) == pytest.approx((0.9 - 0.5 * 2.262157, 0.9 + 0.5 * 2.262157))


def test_the_interval_holds_the_mean() -> None:
    (perfect,) = scores([responses("a", [1] * 400)], [objective("a")])
    assert perfect.interval(0.6)[0] < perfect.mean <= perfect.interval(0.6)[1]


@pytest.mark.parametrize("values", [[0] * 20, [1] * 20, [1] * 3 + [0] * 17])
def test_minimizing_mirrors_the_interval(values: list[float]) -> None:
    (up,), (down,) = (scores([responses("a", values)], [objective("a", goal=goal)]) for goal in ("max", "min"))
    assert down.interval(0.95) == pytest.approx((-up.interval(0.95)[1], -up.interval(0.95)[0]))


def test_the_mean_of_several_shrinks_as_they_do() -> None:
    data, objectives = [responses("a", [1] * 8), responses("b", [0] * 6)], [objective("a"), objective("b", goal="min")]
    centres = [estimate.centre for estimate in scores(data, objectives)]
    assert centres == pytest.approx([10 / 12, -2 / 10])
    assert scores_and_mean(data, objectives)[1].centre == pytest.approx(sum(centres) / 2)


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("count", [30, 100])
def test_intervals_cover(probability: float, count: int) -> None:
    draws = np.random.default_rng(1).binomial(count, probability, 20_000)
    covered = {
        right: low <= probability <= high
        for right in set(draws.tolist())
        for (estimate,) in [scores([responses("a", [1] * right + [0] * (count - right))], [objective("a")])]
        for low, high in [estimate.interval(0.95)]
    }
    assert np.mean([covered[right] for right in draws.tolist()]) > 0.94


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([responses("b", [1, 0])], "objective 'x': expected responses to task 'a', metric 'acc'"),
        ([responses("a", [1, 0], "f1")], "expected responses to task 'a', metric 'acc'"),
        ([responses("a", [1])], "expected at least 2 items; got 1"),
    ],
)
def test_missing_responses(data: list[Responses], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        scores(data, [objective("x", "a")])


def test_metrics_of_one_task_must_agree_on_the_items() -> None:
    data = [responses("a", [1, 0]), responses("a", [1, 0], "f1", first=1)]
    with pytest.raises(TaskError, match="on the same items"):
        scores_and_mean(data, [objective("x", "a"), objective("y", "a", metric="f1")])
