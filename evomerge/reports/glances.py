"""Looks at a run while it goes on, for whoever wants to show it.

They may neither hold the run up nor end it: they take about one percent of the time, whatever they cost, and one that
fails is skipped.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.reports.standing import Standing, Tally
from evomerge.runs import RunStore

if TYPE_CHECKING:
    from evomerge.config import Experiment

__all__ = ["Glances"]

_SHARE = 0.01
"""Of the time, for looks at the run folder."""

_LONGEST = 60.0
"""Seconds between two looks at most: the first one, which reads everything, is no measure of the others."""


class Glances:
    """Looks at a run in progress, now and then.

    Args:
        experiment: the run's.
        folder: the run folder.
        seconds: between two looks, at least; more where a look takes long.
    """

    def __init__(self, experiment: Experiment, folder: Path, seconds: float = 1.0) -> None:
        self._tally, self._folder, self._seconds = Tally(experiment), folder, seconds
        self._next = 0.0

    def look(self, *, now: bool = False) -> Standing | None:
        """Where the run stands; None if it is too soon to ask again, or if it cannot be read."""
        began = time.monotonic()
        if began < self._next and not now:
            return None
        standing = None
        try:
            with RunStore.read(self._folder) as store:
                standing = self._tally.look(store)
        except Exception as error:  # a picture of a run is not worth the run
            logging.getLogger("evomerge.workers").info("the run could not be looked at: %s", error)
        took = time.monotonic() - began
        self._next = began + max(self._seconds, min(took / _SHARE, _LONGEST))
        return standing
