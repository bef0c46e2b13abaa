"""From a configuration to an assessment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from evomerge.config import FitnessConfig, IrtConfig
from evomerge.errors import TaskError
from evomerge.fitness.assessment import Assessment, Contest, Reader
from evomerge.fitness.items import ItemSplit
from evomerge.fitness.shared import SharedItems

__all__ = ["bank_digests", "build_assessment"]


def bank_digests(fitness: FitnessConfig) -> dict[str, str]:
    """Content digests of the item banks, by their place in the list.

    Raises:
        TaskError: a bank that cannot be read.
    """
    banks = fitness.estimator.banks if isinstance(fitness.estimator, IrtConfig) else ()
    try:
        return {str(n): hashlib.blake2b(p.read_bytes(), digest_size=16).hexdigest() for n, p in enumerate(banks)}
    except OSError as error:
        raise TaskError(f"{error.filename}: expected an item bank; got {error.strerror}; check the path") from error


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
            banks=[load_bank(path) for path in estimator.banks],
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
