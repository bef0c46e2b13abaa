"""What a worker needs of an engine and of a scorer, and nothing about how either does it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from evomerge.outcome import ItemSet, Responses
    from evomerge.recipe import Recipe

__all__ = ["Engine", "LoadStats", "Scorer", "stay_offline"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadStats:
    """What writing one recipe into a live model took.

    Attributes:
        seconds: wall time.
        rewritten_share: share of the model's weights that were written, 0 to 1; the rest already held the right values.
    """

    seconds: float
    rewritten_share: float


class Engine(Protocol):
    """A live model whose weights a recipe can overwrite."""

    def load(self, recipe: Recipe, *, exact: bool = True) -> LoadStats:
        """Make the live model the recipe's merge, whatever it was before.

        Args:
            recipe: what to merge.
            exact: from the models' own weights, even where the engine keeps approximations of them.

        Raises:
            MergeError: the recipe could not be turned into weights. The next load rewrites everything.
        """
        ...


class Scorer(Protocol):
    """Scores the live model on chosen items."""

    def sizes(self) -> Mapping[str, int]:
        """Number of items of every task."""
        ...

    def score(self, items: ItemSet) -> tuple[tuple[Responses, ...], Mapping[str, float]]:
        """Per-item outcomes, one record per (task, metric), sorted; and wall seconds by stage.

        Raises:
            TaskError: an item that does not exist, or a value that is no number.
            MergeError: the model computes NaN or infinity.
        """
        ...


def stay_offline() -> None:
    """Keep the Hugging Face libraries off the network, unless the user's environment says otherwise.

    They read these variables when they are imported, so this comes before any such import.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
