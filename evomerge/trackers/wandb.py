"""Weights & Biases. The account, or `WANDB_MODE=offline`, is the library's own business."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from evomerge.errors import require
from evomerge.trackers.base import Session

__all__ = ["WandB"]


class WandB:
    """One run of the project `evomerge`, unless `WANDB_PROJECT` names another."""

    def __init__(self, session: Session) -> None:
        wandb: Any = require("wandb", "wandb")
        settings = wandb.Settings(silent=True, console="off")
        self._run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else "evomerge",
            name=session.name,
            id=session.key or None,
            resume="allow",
            dir=str(session.folder),
            config=dict(session.config),
            settings=settings,
        )
        self.key = str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()
