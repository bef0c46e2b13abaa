"""From a configuration to an assessment."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.config import FitnessConfig, IrtConfig
from evomerge.fitness.assessment import Assessment, Contest, Reader, SharedItems
from evomerge.fitness.items import ItemSplit

__all__ = ["build_assessment"]


def build_assessment(
    fitness: FitnessConfig, split: ItemSplit, *, digests: Mapping[str, str], contest: Contest, seed: int
) -> Assessment:
    """The assessment that a configuration describes.

    Args:
        fitness: objectives, constraints, estimator and race.
        split: what the search may ask.
        digests: content digest of every task.
        contest: what candidates compete for.
        seed: run seed.

    Raises:
        TaskError: an item bank that cannot be read, or is one of other items.
    """
    estimator = fitness.estimator
    reader: Reader = SharedItems(split, fitness.objectives, fitness.constraints)
    if isinstance(estimator, IrtConfig):
        from evomerge.fitness.irt import load_bank  # not needed by most runs, nor by any report
        from evomerge.fitness.reduced import ReducedItems

        reader = ReducedItems(
            split,
            fitness.objectives,
            fitness.constraints,
            estimator,
            digests=digests,
            banks={task: load_bank(path) for task, path in estimator.banks.items()},
            seed=seed,
        )
    return Assessment(
        reader,
        fitness.objectives,
        contest=contest,
        search=fitness.items.search,
        race=fitness.race,
        promote=estimator.promote if isinstance(estimator, IrtConfig) else 0,
        seed=seed,
    )
