"""What a tracker is. One module per library turns that library into one; knows nothing of runs or threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Session", "Tracker"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A run, as a tracker is told of it.

    Attributes:
        name: of the experiment.
        folder: where the tracker may keep files.
        config: the resolved experiment, plain data without secrets.
        key: what the tracker of an earlier driver called itself, to go on with; empty at first.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    key: str = ""


class Tracker(Protocol):
    """Takes numbers. May raise whatever its library raises: nobody depends on it.

    Attributes:
        key: what goes on with it later; empty if nothing is needed.
    """

    key: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers by name at one step; steps come in order."""
        ...

    def close(self) -> None:
        """Hands on what it still holds."""
        ...
