"""Scores of single items, for algorithms that let candidates compete for each. Knows nothing of algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.outcome import Exact

if TYPE_CHECKING:
    from evomerge.config import Measured
    from evomerge.outcome import Answer

__all__ = ["item_scores"]


def item_scores(answers: Sequence[Answer], objectives: Sequence[Measured]) -> dict[tuple[int, int, int], float]:
    """What a candidate scored on every item that it was asked; higher is better. A cost is an item of its own.

    Args:
        answers: all that is known of a candidate.
        objectives: what is read from it.

    Returns:
        Scores by the number of the objective, that of the task within it, and the item.
    """
    read = {(answer.task, answer.metric): answer for answer in answers if not isinstance(answer, Exact)}
    costs = {answer.cost: float(answer.value) for answer in answers if isinstance(answer, Exact)}
    found: dict[tuple[int, int, int], float] = {}
    for number, objective in enumerate(objectives):
        sign = 1.0 if objective.goal == "max" else -1.0
        if objective.cost is not None:
            found[number, 0, 0] = sign * costs[objective.cost]
        for part, metric in enumerate(objective.metrics):
            response = read[metric.task, metric.metric]
            pairs = zip(response.items, response.values, strict=True)
            found |= {(number, part, item): sign * value for item, value in pairs}
    return found
