"""Whether a candidate is to blame for the workers that it was lost with. Pure book-keeping on attempts.

Workers also die of other causes: machines are taken away, memory runs out, people kill processes. So what counts is how
many losses in a row one candidate had, against how often attempts of all others end that way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

from evomerge.outcome import Stage
from evomerge.runs import Status

__all__ = ["Blame"]

_DEATHS = (2, 5)
"""Workers that a candidate must cost in a row: at least, and at most before it is failed for good."""

_NODES = 8
"""Nodes that may vanish under a candidate in a row before it is failed for good: a kernel may fall over, too."""

_DRIVERS = 2
"""Drivers that may end with a candidate in a row before it is done in a process of its own."""

_CHANCE = 1e-4
"""Below this probability, deaths in a row are no chance."""

_PRIOR = (0.2, 20.0)
"""Deaths and attempts that stand for what is known beforehand of workers' deaths."""


class Blame:
    """Losses in a row by key, and how often attempts end in a death at all."""

    def __init__(self) -> None:
        self._rows: Counter[tuple[Hashable, str]] = Counter()
        self._deaths: Counter[Hashable] = Counter()
        self._all_deaths = 0
        self._scored = False
        self._all_attempts = 0

    def note(self, key: Hashable, status: Status, stage: Stage | str) -> None:
        """An attempt ended.

        Args:
            key: whose it was.
            status: how it ended.
            stage: where it failed.
        """
        if status == "started":
            return
        if status == "lost":
            self._rows[key, "driver"] += 1
            return
        self._all_attempts += 1
        if status == "scored":
            self._scored = True
            for kind in ("driver", "node", "death"):
                self._rows.pop((key, kind), None)
        elif stage == "node":
            self._rows[key, "node"] += 1
        else:
            self._rows[key, "death"] += 1
            self._deaths[key] += 1
            self._all_deaths += 1

    def guilty(self, key: Hashable) -> bool:
        """Whether it is failed for good."""
        least, most = _DEATHS
        row = self._rows[key, "death"]
        if row >= most or self._rows[key, "node"] >= _NODES:
            return True
        deaths, attempts = _PRIOR
        deaths += self._all_deaths - self._deaths[key]
        attempts += self._all_attempts - self._deaths[key]
        beyond_chance = (deaths / attempts) ** row < _CHANCE
        return row >= least and (beyond_chance or not self._scored)  # where nothing works, more tries prove nothing

    def suspect(self, key: Hashable) -> bool:
        """Whether drivers ended with it so often that it may have ended them."""
        return self._rows[key, "driver"] >= _DRIVERS
