"""What a vLLM worker learns: to make a recipe's weights itself. Only texts cross the process boundary.

vLLM mixes `MergeExtension` into its worker class, in every process that holds a part of the model, and lets named
methods of it be called from outside. Knows nothing of requests or scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.config import PoolConfig, VllmConfig, load_plugins
from evomerge.config.base import Strict
from evomerge.errors import EvomergeError

__all__ = ["EXTENSION", "MergeExtension", "Opening"]

EXTENSION = f"{__name__}.MergeExtension"
"""vLLM's `worker_extension_cls`."""


class Opening(Strict):
    """What a vLLM worker must know to make weights."""

    pool: PoolConfig
    engine: VllmConfig
    plugins: tuple[Path, ...] = ()
    """Files that the run's driver has run, which may hold operators."""


class MergeExtension:
    """Methods that a vLLM worker gets; their names must not clash with its own.

    Each answers with plain data, since exceptions do not cross all of vLLM's process boundaries. Where evomerge refused
    something that is `fault`, a text, and `intact`, whether vLLM can still be told something else.
    """

    model_runner: Any

    def evomerge_open(self, opening: str) -> dict[str, Any]:
        """Open the models, once.

        Args:
            opening: an `Opening` as JSON.

        Returns:
            `in_place`: whether weights are written straight into the parameters.
        """
        from evomerge.engines.vllm_weights import LiveWeights
        from evomerge.merging.configured import configured_pool

        told = Opening.model_validate_json(opening)
        try:
            load_plugins(told.plugins)
            self._evomerge = LiveWeights(self, configured_pool(told.pool), told.engine)
        except EvomergeError as error:
            return {"fault": str(error), "intact": True}
        return {"in_place": self._evomerge.in_place}

    def evomerge_load(self, recipe: str, exact: bool, anew: bool) -> dict[str, Any]:
        """Write a recipe's merge into the live parameters.

        Args:
            recipe: as JSON.
            exact: from the models' own weights.
            anew: write everything, even what is known to be there.

        Returns:
            `written`: share of the model's weights that were written.
        """
        from evomerge.recipe import Recipe

        try:
            if anew:
                self._evomerge.forget()
            return {"written": self._evomerge.load(Recipe.from_data(json.loads(recipe)), exact=exact)}
        except EvomergeError as error:
            return {"fault": str(error), "intact": self._evomerge.intact}
