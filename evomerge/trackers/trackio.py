"""trackio: local first; `trackio show` opens its dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import require
from evomerge.trackers.base import Session

__all__ = ["Trackio"]


class Trackio:
    """One run of the project `evomerge`; trackio goes on with a run by its name."""

    def __init__(self, session: Session) -> None:
        trackio: Any = require("trackio", "trackio")
        self._run = trackio.init(
            project="evomerge",
            name=session.key or None,
            resume="allow" if session.key else "never",
            config=dict(session.config),
            embed=False,
        )
        self.key = str(self._run.name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._run.finish()
