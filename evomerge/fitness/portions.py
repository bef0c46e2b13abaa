"""How many items of each task a race asks, round by round: those first that tell most for what they cost.

Knows nothing of candidates, answers or engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import heapify, heapreplace

__all__ = ["portions"]

_LEAST = 2
"""Items of every task from the first round on: one alone says nothing of how much they differ."""


def portions(costs: Mapping[str, float], search: int, rounds: int) -> list[dict[str, int]]:
    """Items of each task after each round, those of earlier rounds included; in the end `search` of every task.

    Each next item is one of the task whose mean it makes surest for its cost: by `1 / n - 1 / (n + 1)` after n items,
    in units of the variance of one, which is taken to be alike in all tasks. Per token this is Neyman's allocation, n
    in proportion to `1 / sqrt(cost)` (Cochran 1977, "Sampling Techniques", section 5.5), as far as no task ends before.

    Example:
        >>> portions({"choice": 1.0, "long": 1.0}, search=10, rounds=3)
        [{'choice': 4, 'long': 4}, {'choice': 7, 'long': 7}, {'choice': 10, 'long': 10}]
        >>> portions({"choice": 1.0, "long": 20.0}, search=10, rounds=3)
        [{'choice': 6, 'long': 2}, {'choice': 10, 'long': 4}, {'choice': 10, 'long': 10}]

    Args:
        costs: of an item of each task, above 0, in any unit.
        search: items of each task in the end.
        rounds: equal portions of items over all tasks, the first ones larger by one item of every task where they do
            not divide. Either 1, or with at least 2 items of every task in each.
    """
    counts = dict.fromkeys(costs, min(search, _LEAST))
    heap = [(_price(cost, counts[task]), place, task) for place, (task, cost) in enumerate(costs.items())]
    heapify(heap)
    found = []
    for number in range(1, rounds + 1):
        for _ in range(-(-search * number // rounds) * len(costs) - sum(counts.values())):
            _, place, task = heap[0]
            counts[task] += 1
            price = _price(costs[task], counts[task]) if counts[task] < search else math.inf
            heapreplace(heap, (price, place, task))
        found.append(dict(counts))
    return found


def _price(cost: float, items: int) -> float:
    """What the next item costs, for each unit by which it lowers the variance of a mean of so many."""
    return cost * items * (items + 1)
