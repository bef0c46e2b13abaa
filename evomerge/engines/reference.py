"""The slow, obvious way to score: lm-eval's own `evaluate`. What `EvalRunner` must agree with, item by item."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.engines.lm_tasks import load_tasks
from evomerge.engines.runner import check_items, number
from evomerge.outcome import Responses

if TYPE_CHECKING:
    from evomerge.config import FitnessConfig
    from evomerge.engines.base import Engine
    from evomerge.outcome import ItemSet

__all__ = ["reference_scores"]


def reference_scores(engine: Engine, fitness: FitnessConfig, seed: int, items: ItemSet) -> tuple[Responses, ...]:
    """Score the live model through `lm_eval.evaluate`, building everything anew.

    Args:
        engine: holds the live model.
        fitness: tasks and objectives.
        seed: run seed.
        items: chosen item ids.

    Returns:
        The same records as `EvalRunner.score`.

    Raises:
        TaskError: as `EvalRunner` and its `score`.
    """
    from lm_eval.evaluator import evaluate

    tasks = {task.name: task for task in load_tasks(fitness, seed)}
    check_items(items, {name: task.size for name, task in tasks.items()})
    chosen = dict(items.tasks)
    # a task that is missing from `samples` would be scored on all of its items, so it is left out altogether
    results = evaluate(
        engine.backend(chat_template=fitness.chat_template).lm,
        {"tasks": {name: tasks[name].task for name in chosen}},
        samples={name: list(ids) for name, ids in chosen.items()},
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=fitness.chat_template,
    )
    responses = []
    for name, ids in items.tasks:
        for metric, through in tasks[name].filters.items():
            records = {r["doc_id"]: r for r in results["samples"][name] if r["filter"] == through}
            values = tuple(number(name, metric, i, records[i]) for i in ids)
            responses.append(Responses(task=name, metric=metric, items=ids, values=values))
    return tuple(responses)
