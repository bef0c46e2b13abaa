"""Scores of single items."""

from __future__ import annotations

from evomerge.config import ObjectiveConfig
from evomerge.fitness.item_scores import item_scores
from evomerge.outcome import Answer, Exact, Responses


def test_every_item_of_every_objective_has_a_score_in_one_direction() -> None:
    objectives = [
        ObjectiveConfig.model_validate({"name": "right", "task": "a"}),
        ObjectiveConfig.model_validate({"name": "words", "task": "b", "metric": "tokens", "goal": "min"}),
        ObjectiveConfig.model_validate({"name": "both", "tasks": [{"task": "a"}, {"task": "c"}]}),
        ObjectiveConfig.model_validate({"name": "size", "cost": "layers", "goal": "min"}),
    ]
    answers: list[Answer] = [
        Responses(task="a", metric="acc", items=(2, 5), values=(1.0, 0.0)),
        Responses(task="b", metric="tokens", items=(2,), values=(40.0,)),
        Responses(task="c", metric="acc", items=(9,), values=(1.0,)),
        Exact(cost="layers", value=12),
    ]
    assert item_scores(answers, objectives) == {
        (0, 0, 2): 1.0,
        (0, 0, 5): 0.0,
        (1, 0, 2): -40.0,
        (2, 0, 2): 1.0,
        (2, 0, 5): 0.0,
        (2, 1, 9): 1.0,
        (3, 0, 0): -12.0,
    }
