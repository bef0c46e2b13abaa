"""Rounds: who is asked again, how much, and what is told in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from evomerge.config import ItemsConfig, ObjectiveConfig, RaceConfig
from evomerge.fitness import Assessment, Told, split_items
from evomerge.fitness.assessment import Contest
from evomerge.fitness.shared import SharedItems
from evomerge.outcome import ItemSet, Responses, together

OBJECTIVES = [ObjectiveConfig(name="a", task="a"), ObjectiveConfig(name="b", task="b")]
SPLIT = split_items({"a": 80, "b": 90}, ItemsConfig(search=12, confirm=20), seed=3)

Solves = Callable[[int, str, int], float]


def assessment(race: RaceConfig | None, contest: Contest = "front") -> Assessment:
    reader = SharedItems(SPLIT, OBJECTIVES, [])
    return Assessment(reader, OBJECTIVES, contest=contest, search=12, race=race, promote=0, seed=3)


def play(dialogue: Any, solves: Solves) -> tuple[dict[int, Told], list[Mapping[int, ItemSet]]]:
    """Answer until nothing more is asked."""
    answered: dict[int, list[tuple[Responses, ...]]] = {}
    asked = []
    try:
        questions = next(dialogue)
        while True:
            asked.append(questions)
            for number, items in questions.items():
                new = tuple(
                    Responses(task=task, metric="acc", items=ids, values=tuple(solves(number, task, i) for i in ids))
                    for task, ids in items.tasks
                )
                answered.setdefault(number, []).append(new)
            questions = dialogue.send({number: together(answered[number]) for number in questions})
    except StopIteration as end:
        return end.value, asked


def genomes(*numbers: int) -> dict[int, tuple[float, ...]]:
    return {number: (number / 100,) for number in numbers}


def clear(number: int, task: str, item: int) -> float:
    return 1.0 if number % 2 else 0.0


def test_without_a_race_everybody_answers_one_draw() -> None:
    found, asked = play(assessment(None).generation(0, {"base": 0}, genomes(1, 2)), clear)
    assert asked == [dict.fromkeys((0, 1, 2), SPLIT.draw(0))]
    assert (found[1].scores, found[2].scores, found[1].items) == ((1.0, 1.0), (0.0, 0.0), 24)
    _, again = play(assessment(None).generation(1, {"base": 0}, genomes(3)), clear)
    assert again == [{3: SPLIT.draw(1)}]


def test_halving_asks_the_better_half_on() -> None:
    race = RaceConfig(kind="halving", rounds=3)
    found, asked = play(
        assessment(race).generation(0, {"base": 0}, genomes(*range(1, 9))), lambda n, t, i: float(i % 9 < n)
    )
    assert [sorted(questions) for questions in asked] == [[0, *range(1, 9)], [5, 6, 7, 8], [7, 8]]
    assert [found[number].items for number in (1, 5, 8)] == [8, 16, 24]
    first, second, third = (questions[8] for questions in asked)
    everything = {task: sorted(ids) for task, ids in SPLIT.draw(0).tasks}
    parts = [dict(portion.tasks) for portion in (first, second, third)]
    assert {task: sorted(i for part in parts for i in part[task]) for task in ("a", "b")} == everything


def test_what_is_decided_is_not_asked_on() -> None:
    race = RaceConfig(rounds=3, target_sd=0.0)
    found, asked = play(assessment(race, "mean").generation(0, {"base": 0}, genomes(1, 2, 3, 4)), clear)
    assert len(asked) == 1, "two are always right and two always wrong"
    assert found[1].items == 8

    def close(number: int, task: str, item: int) -> float:
        return float((item * 7 + number) % 5 < 2)

    _, asked = play(assessment(race, "mean").generation(0, {"base": 0}, genomes(1, 2, 3, 4)), close)
    assert len(asked) == 3


def test_one_that_fails_leaves_the_race() -> None:
    dialogue = assessment(RaceConfig(kind="halving", rounds=2)).generation(0, {"base": 0}, genomes(1, 2, 3))
    questions = next(dialogue)
    answers = {
        n: tuple(
            Responses(task=task, metric="acc", items=ids, values=(float(n > 1),) * len(ids))
            for task, ids in items.tasks
        )
        for n, items in questions.items()
    }
    questions = dialogue.send(answers | {3: None})
    assert sorted(questions) == [2]
    with pytest.raises(StopIteration) as end:
        dialogue.send({2: None})
    assert sorted(end.value.value) == [0, 1]
