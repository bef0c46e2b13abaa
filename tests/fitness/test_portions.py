"""How a race shares its items out over tasks: what a task costs decides when it is asked, not how much in the end."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.config import ItemsConfig, ObjectiveConfig, RaceConfig
from evomerge.fitness import Assessment, split_items
from evomerge.fitness.portions import portions
from evomerge.fitness.shared import SharedItems
from evomerge.outcome import Responses

COSTS = {"choice": 1, "long": 20}
OBJECTIVES = [ObjectiveConfig(name=task, task=task) for task in COSTS]


@pytest.mark.parametrize(("search", "rounds"), [(10, 3), (4, 2), (14, 7), (100, 1), (1, 1)])
@pytest.mark.parametrize("cost", [1.0, 0.1, 311 / 7])
def test_tasks_of_equal_cost_are_asked_alike(search: int, rounds: int, cost: float) -> None:
    totals = portions(dict.fromkeys("abc", cost), search, rounds)
    assert all(len({*total.values()}) == 1 for total in totals)
    edges = [total["a"] for total in totals]
    assert (edges[-1], len(edges)) == (search, rounds)
    sizes = [after - before for before, after in pairwise([0, *edges])]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@given(
    costs=st.dictionaries(st.sampled_from("abcdef"), st.floats(1e-3, 1e6), min_size=1),
    rounds=st.integers(1, 6),
    each=st.integers(2, 20),
    more=st.integers(0, 5),
)
def test_whatever_tasks_cost_rounds_hold_as_many_items_and_end_alike(
    costs: dict[str, float], rounds: int, each: int, more: int
) -> None:
    search = rounds * each + min(more, rounds - 1)
    totals = portions(costs, search, rounds)
    alike = portions(dict.fromkeys(costs, 1.0), search, rounds)
    assert [sum(total.values()) for total in totals] == [sum(total.values()) for total in alike]
    assert totals[-1] == dict.fromkeys(costs, search)
    assert min(totals[0].values()) >= 2
    assert all(before[task] <= after[task] for before, after in pairwise(totals) for task in costs)
    for total in totals:
        counts = [total[task] for task in sorted(costs, key=costs.__getitem__)]
        assert counts == sorted(counts, reverse=True) or len({*costs.values()}) < len(costs)


@given(costs=st.lists(st.floats(0.1, 100.0), min_size=2, max_size=5))
def test_shares_are_neymans_as_far_as_tasks_last(costs: list[float]) -> None:
    by_task = {str(number): cost for number, cost in enumerate(costs)}
    total = portions(by_task, 2000, 50)[0]
    shares = np.array(costs) ** -0.5 / np.sum(np.array(costs) ** -0.5)
    assert np.allclose([*total.values()], 40 * len(costs) * shares, atol=len(costs))


def first_cut(seed: int, search: int, *, heard: bool) -> tuple[int, float]:
    """The first round of a halving race of 32 candidates: its tokens, and what the kept half lacks to the better half.

    Args:
        heard: whether a generation before told what items cost.
    """
    split = split_items(dict.fromkeys(COSTS, 200), ItemsConfig(search=search, confirm=20), seed)
    reader, config = SharedItems(split, OBJECTIVES, []), RaceConfig(kind="halving", rounds=2)
    assessment = Assessment(reader, OBJECTIVES, contest="mean", search=search, race=config, promote=0, seed=seed)
    if heard:
        assessment.took(split.draw(0), {task: search * cost for task, cost in COSTS.items()})
    rng = np.random.default_rng(seed)
    chances = rng.uniform(0.2, 0.8, (32, 2))
    right = (rng.random((200, 32, 2)) < chances).astype(float)
    dialogue = assessment.generation(1, {}, {number: (0.5,) for number in range(32)})
    questions = next(dialogue)
    kept = dialogue.send(
        {
            number: tuple(
                Responses(task=task, metric="acc", items=ids, values=tuple(right[[*ids], number, place].tolist()))
                for place, (task, ids) in enumerate(items.tasks)
            )
            for number, items in questions.items()
        }
    )
    worth = chances.mean(axis=1)
    tokens = sum(COSTS[task] * len(ids) for items in questions.values() for task, ids in items.tasks)
    return tokens, float(np.sort(worth)[16:].mean() - worth[[*kept]].mean())


def cuts(search: int, *, heard: bool) -> tuple[float, float]:
    tokens, lost = np.mean([first_cut(seed, search, heard=heard) for seed in range(150)], axis=0)
    return float(tokens), float(lost)


def test_a_race_that_knows_costs_cuts_as_well_for_fewer_tokens_and_better_for_as_many() -> None:
    heard, plain, cheap = cuts(40, heard=True), cuts(24, heard=False), cuts(16, heard=False)
    assert heard[0] < 0.7 * plain[0]
    assert heard[1] < 1.05 * plain[1]
    assert heard[0] < 1.05 * cheap[0]
    assert heard[1] < 0.85 * cheap[1]


@pytest.mark.parametrize(
    ("tokens", "counts"),
    [
        ({"choice": 240, "long": 4800}, [13, 3]),
        ({"choice": 240, "long": 240}, [8, 8]),
        ({"choice": 240}, [8, 8]),
        ({"choice": 240, "long": 0}, [8, 8]),
        ({}, [8, 8]),
    ],
)
def test_the_first_round_follows_what_was_told_and_is_equal_while_a_cost_is_unknown(
    tokens: dict[str, int], counts: list[int]
) -> None:
    split = split_items(dict.fromkeys(COSTS, 200), ItemsConfig(search=24, confirm=20), 3)
    reader, config = SharedItems(split, OBJECTIVES, []), RaceConfig(rounds=3)
    assessment = Assessment(reader, OBJECTIVES, contest="front", search=24, race=config, promote=0, seed=3)
    assessment.took(split.draw(0), tokens)
    first = next(assessment.generation(1, {}, {5: (0.5,)}))[5]
    assert [len(ids) for _, ids in first.tasks] == counts
    alone = assessment.alone(6, (0.5,), 1)
    assert [len(ids) for _, ids in alone.tasks] == [24, 24], "without a race everything is asked at once"
