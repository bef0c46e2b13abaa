"""Objectives that are costs, and objectives made of several tasks: means, intervals, fronts, limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from evomerge.config import ConstraintConfig, FitnessConfig, IrtConfig, ItemsConfig, ObjectiveConfig, RaceConfig
from evomerge.errors import TaskError
from evomerge.fitness import (
    MEAN,
    Assessment,
    broken,
    confirm_front,
    paired_difference,
    scores,
    scores_and_mean,
    split_items,
    violation,
    with_costs,
)
from evomerge.fitness.reduced import ReducedItems
from evomerge.fitness.shared import SharedItems
from evomerge.outcome import Answer, Exact, ItemSet, Responses
from evomerge.recipe import Sizes, uniform

DEPTH = ObjectiveConfig(name="depth", cost="layers", goal="min")
MATHS = ObjectiveConfig(name="maths", task="maths")
BOTH = ObjectiveConfig(name="both", tasks=({"task": "maths", "weight": 3.0}, {"task": "code"}))
ITEMS = {"search": 8, "confirm": 8}


def responses(task: str, *values: float, metric: str = "acc") -> Responses:
    return Responses(task=task, metric=metric, items=tuple(range(len(values))), values=values)


def layers(value: int) -> Exact:
    return Exact(cost="layers", value=value)


def test_a_group_is_the_weighted_mean_of_its_tasks_whatever_their_numbers_of_items() -> None:
    answers = [responses("maths", 1, 1, 0, 0), responses("code", *[1.0] * 30)]
    (found,) = scores(answers, [BOTH])
    maths, code = scores(answers, [MATHS, ObjectiveConfig(name="code", task="code")])
    assert found.mean == pytest.approx(0.75 * 0.5 + 0.25 * 1.0)
    assert found.se == pytest.approx(math.hypot(0.75 * maths.se, 0.25 * code.se))
    assert found.items == 34
    assert found.bounds == (0.0, 1.0)


def test_degrees_of_freedom_follow_the_part_that_is_least_sure() -> None:
    rng = np.random.default_rng(0)
    few, many = responses("maths", *rng.normal(size=4)), responses("code", *rng.normal(size=400))
    (found,) = scores([few, many], [BOTH])
    assert 3.0 <= found.freedom < 3.5
    (alone,) = scores([few], [MATHS])
    assert alone.freedom == 3.0


def test_intervals_of_a_group_hold_as_often_as_they_say() -> None:
    rng, hits, runs = np.random.default_rng(1), 0, 2000
    for _ in range(runs):
        answers = [responses("maths", *rng.normal(0.3, 2.0, 5)), responses("code", *rng.normal(-0.1, 0.5, 40))]
        low, high = scores(answers, [BOTH])[0].interval(0.9)
        hits += low <= 0.75 * 0.3 - 0.25 * 0.1 <= high
    assert 0.88 <= hits / runs <= 0.93


def test_metrics_of_one_task_in_a_group_are_correlated() -> None:
    same = ObjectiveConfig(name="same", tasks=({"task": "maths"}, {"task": "maths", "metric": "again"}))
    values = (1.0, 0.0, 1.0, 1.0, 0.0, 1.0)
    (found,) = scores([responses("maths", *values), responses("maths", *values, metric="again")], [same])
    assert found.se == pytest.approx(scores([responses("maths", *values)], [MATHS])[0].se)


def test_a_minimized_group_is_negated() -> None:
    loss = ObjectiveConfig(name="loss", goal="min", tasks=({"task": "maths"}, {"task": "code"}))
    (found,) = scores([responses("maths", 2.0, 4.0), responses("code", 1.0, 1.0)], [loss])
    assert found.mean == pytest.approx(-2.0)


def test_a_cost_is_exact() -> None:
    maths, depth = scores([responses("maths", 1, 0, 1, 1), layers(24)], [MATHS, DEPTH])
    assert depth.mean == -24
    assert depth.interval(0.99) == (-24, -24)
    assert (depth.se, depth.items) == (0.0, 0)
    assert maths.mean == 0.75


def test_a_cost_enters_the_mean_by_its_weight() -> None:
    objectives = [MATHS, ObjectiveConfig(name="depth", cost="layers", goal="min", weight=0.25)]
    found = scores_and_mean([responses("maths", 1, 1, 0, 1), layers(2)], objectives)[1]
    assert found.mean == pytest.approx((0.75 - 0.25 * 2) / 1.25)
    assert found.se > 0


def test_a_cost_that_nobody_knows_is_refused() -> None:
    with pytest.raises(TaskError, match="expected the cost 'layers'"):
        scores([responses("maths", 1, 0)], [MATHS, DEPTH])
    recipe = uniform(["base"], layers=2, dtype="float32")
    with pytest.raises(TaskError, match="recorded the sizes"):
        with_costs((), recipe, None, [DEPTH])
    assert with_costs((), recipe, None, [MATHS]) == ()


def test_costs_come_from_the_recipe() -> None:
    costs: Any = ("layers", "kv_slots", "parameters", "flops")
    sizes = Sizes(outside=dict.fromkeys(costs, 0), layers=dict.fromkeys(costs, (1, 1)))
    answers = (responses("maths", 1, 0),)
    found = with_costs(answers, uniform(["base"], layers=2, dtype="float32"), sizes, [MATHS, DEPTH, DEPTH])
    assert found == (*answers, layers(2))


def test_differences_of_costs_have_no_interval() -> None:
    a: list[Answer] = [responses("maths", 1, 1, 0, 1), layers(6)]
    b: list[Answer] = [responses("maths", 1, 0, 0, 1), layers(8)]
    found = paired_difference(a, b, [DEPTH], level=0.95, comparisons=7)
    assert (found.mean, found.low, found.high, found.items) == (2.0, 2.0, 2.0, 0)
    plain = paired_difference(a, b, [MATHS], level=0.95)
    assert paired_difference(a, b, [MATHS, DEPTH], level=0.95) == plain
    mixed = paired_difference(a, b, [MATHS, DEPTH.model_copy(update={"weight": 1.0})], level=0.95)
    assert mixed.mean == pytest.approx((plain.mean + 2.0) / 2)
    assert mixed.high - mixed.low == pytest.approx((plain.high - plain.low) / 2)


def test_a_shorter_path_is_on_the_front_for_sure() -> None:
    def answers(right: int, depth: int) -> list[Any]:
        return [responses("maths", *[1.0] * right, *[0.0] * (40 - right)), layers(depth)]

    finalists = {0: answers(30, 8), 1: answers(32, 9), 2: answers(20, 6), 3: answers(19, 8)}
    found = confirm_front(finalists, {"base": 0}, [MATHS, DEPTH], level=0.95)
    assert found.members == (0, 1, 2)
    assert found.probability[2] == 1.0
    assert found.best == {"maths": 1, "depth": 2}
    gain = found.gains[2]["base"]["depth"]
    assert gain.low == gain.high == 2.0
    assert found.gains[1]["base"][MEAN].items == 40


def test_comparisons_that_are_exact_do_not_widen_the_others() -> None:
    finalists: dict[int, list[Answer]] = {
        i: [responses("maths", *[float((k * 7 + i) % 3 > 0) for k in range(30)]), layers(i)] for i in range(3)
    }
    alone = confirm_front(finalists, {"base": 0}, [MATHS, ObjectiveConfig(name="b", task="maths")], level=0.95)
    costed = confirm_front(finalists, {"base": 0}, [MATHS, DEPTH], level=0.95)
    assert costed.gains[1]["base"]["maths"].low > alone.gains[1]["base"]["maths"].low


def test_a_limit_on_a_cost() -> None:
    limit = ConstraintConfig(name="small", cost="layers", at_most=8)
    relative = ConstraintConfig(name="longer", cost="layers", at_most=1, relative_to="base")
    assert violation([layers(10)], {}, [limit]) == 2
    assert violation([layers(8)], {}, [limit]) == 0
    assert violation([layers(10)], {"base": [layers(8)]}, [relative]) == 1
    assert [*broken([layers(10)], {}, [limit])] == ["small 10, at most 8 was asked"]


def fitness(*objectives: Any, **more: Any) -> FitnessConfig:
    return FitnessConfig.model_validate({"objectives": objectives, "items": ITEMS, **more})


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ([{"name": "a", "cost": "layers", "goal": "min"}], "costs alone"),
        ([{"name": "a", "task": "a"}, {"name": "b", "cost": "layers"}], "set goal: min"),
        ([{"name": "a", "task": "a", "cost": "layers"}], "one of task, tasks and cost; got task and cost"),
        ([{"name": "a"}], "got none"),
        ([{"name": "a", "task": "a", "weight": 0.0}], "a weight above 0"),
        ([{"name": "a", "tasks": [{"task": "b"}], "metric": "x"}], "under each of tasks"),
        ([{"name": "a", "tasks": [{"task": "b"}, {"task": "b"}]}], "twice"),
        ([{"name": "a", "task": "a"}, {"name": "b", "cost": "seconds", "goal": "min"}], "cost"),
    ],
)
def test_objectives_that_contradict_themselves_are_refused(objectives: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        fitness(*objectives)


def test_what_was_recorded_loads_again() -> None:
    made = fitness(BOTH.model_dump(), DEPTH.model_dump(), constraints=[{"name": "s", "cost": "flops", "at_most": 9}])
    assert FitnessConfig.model_validate(made.model_dump(mode="json")) == made
    assert [metric.name for metric in made.metrics] == ["both: maths (acc)", "both: code (acc)"]
    assert [metric.share for metric in made.metrics] == [0.75, 0.25]


SPLIT = split_items({"maths": 90, "code": 70}, ItemsConfig(search=12, confirm=30), seed=3)
OBJECTIVES = [BOTH, DEPTH]
CONSTRAINTS = [ConstraintConfig(name="small", cost="layers", at_most=6)]


def answer(number: int, items: ItemSet, known: dict[str, dict[int, float]]) -> tuple[Any, ...]:
    """A crowd whose ability grows with its number, on paths of as many layers as its number's last digit."""
    for task, ids in items.tasks:
        for item in ids:
            chance = 1 / (1 + math.exp(-(number / 8 - (item % 11) / 3)))
            known.setdefault(task, {})[item] = float(np.random.default_rng([number, item]).random() < chance)
    given = (
        Responses(task=t, metric="acc", items=tuple(sorted(k)), values=tuple(k[i] for i in sorted(k)))
        for t, k in known.items()
    )
    return (*given, layers(number % 10))


def play(assessment: Assessment, generation: int, references: dict[str, int], born: Sequence[int]) -> Any:
    known: dict[int, dict[str, dict[int, float]]] = {}
    dialogue = assessment.generation(generation, references, {n: ((n % 7) / 7, (n % 5) / 5) for n in born})
    questions = next(dialogue)
    try:
        while True:
            questions = dialogue.send({n: answer(n, i, known.setdefault(n, {})) for n, i in questions.items()})
    except StopIteration as end:
        return end.value, known


@pytest.mark.parametrize("kind", ["mean", "irt"])
@pytest.mark.parametrize("race", [None, RaceConfig(rounds=2), RaceConfig(rounds=3, kind="halving")])
def test_groups_and_costs_under_races_and_models_of_items(kind: str, race: RaceConfig | None) -> None:
    reader: Any = SharedItems(SPLIT, OBJECTIVES, CONSTRAINTS)
    if kind == "irt":
        config, digests = IrtConfig(kind="irt", promote=1), {"maths": "m", "code": "c"}
        reader = ReducedItems(SPLIT, OBJECTIVES, CONSTRAINTS, config, digests=digests, banks=(), seed=3)
    promote = 1 if kind == "irt" else 0
    assessment = Assessment(reader, OBJECTIVES, contest="front", search=12, race=race, promote=promote, seed=3)
    told, known = play(assessment, 0, {"base": 4, "x": 8, "uniform": 6}, range(10, 22))
    for number, found in told.items():
        assert found.scores[1] == -(number % 10)
        assert found.sds[1] == 0.0
        assert 0.0 <= found.sds[0] < 0.4
        assert found.violation == max(0, number % 10 - 6)
        assert found.items == sum(map(len, known[number].values()))
    strong, weak = np.mean([told[n].scores[0] for n in (20, 21)]), np.mean([told[n].scores[0] for n in (10, 11)])
    assert strong > weak


def test_a_model_of_items_reads_a_group_as_the_weighted_mean_of_its_tasks() -> None:
    config, digests = IrtConfig(kind="irt", promote=2), {"maths": "m", "code": "c"}
    code = ObjectiveConfig(name="code", task="code")
    objectives = [BOTH, MATHS, code]
    reader = ReducedItems(SPLIT, objectives, [], config, digests=digests, banks=(), seed=3)
    assessment = Assessment(reader, objectives, contest="front", search=12, race=None, promote=2, seed=3)
    told, _ = play(assessment, 0, {"base": 4, "x": 8, "uniform": 6}, range(10, 22))
    for found in told.values():
        both, maths, each = found.scores
        assert both == pytest.approx(0.75 * maths + 0.25 * each)
        assert found.sds[0] == pytest.approx(math.hypot(0.75 * found.sds[1], 0.25 * found.sds[2]))
