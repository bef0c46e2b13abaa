"""Feeds trackers without depending on them: each has a thread of its own, and one that fails or hangs is left behind.

What was told is noted in the run folder before it is told, so that a driver that goes on never doubles a point; one
that is killed may lose its last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from evomerge.errors import require_installed
from evomerge.reports import Glances, Standing, Summary, summarize
from evomerge.reports.summarize import state_of
from evomerge.runs import RunStore
from evomerge.secrecy import redacted
from evomerge.trackers.base import Session, Tracker
from evomerge.trackers.points import Point, confirmed_points, points_of

if TYPE_CHECKING:
    from evomerge.config import Experiment

__all__ = ["require_trackers", "tracking"]

_OPENED = {
    "tensorboard": "evomerge.trackers.tensorboard:TensorBoard",
    "wandb": "evomerge.trackers.wandb:WandB",
    "mlflow": "evomerge.trackers.mlflow:MLflow",
    "trackio": "evomerge.trackers.trackio:Trackio",
}

_PATIENCE = 20.0
"""Seconds that a tracker has to hand on what it still holds when a run ends."""

Note = Callable[[str], None]


def require_trackers(names: Iterable[str]) -> None:
    """Makes sure, before anything is spent, that the libraries are there.

    Raises:
        MissingExtraError: one is not.
    """
    for name in names:
        require_installed(name, name)


@contextmanager
def tracking(experiment: Experiment, folder: Path, note: Note) -> Iterator[Callable[[], None]]:
    """Trackers of a run, for as long as it goes on.

    Args:
        experiment: names them.
        folder: the run folder.
        note: takes a line about each that fails.

    Yields:
        To be called after each step of the run.
    """
    if not experiment.trackers:
        yield lambda: None
        return
    config = json.loads(redacted(experiment.model_dump_json()))
    lines = [_Line(name, folder / "trackers", experiment.name, config, note) for name in experiment.trackers]
    glances = Glances(experiment, folder)

    def tell(standing: Standing | None, summary: Summary | None = None) -> None:
        if standing is None:
            return
        for line in lines:
            line.take([*points_of(standing, line.step)])
            if summary is not None:
                line.take([*confirmed_points(standing, summary, line.step)])

    try:
        yield lambda: tell(glances.look())
        tell(glances.look(now=True), _summary(folder))
    finally:
        for line in lines:
            line.close()


def _summary(folder: Path) -> Summary | None:
    """Of a run that has just finished."""
    with RunStore.read(folder) as store:
        return summarize(store) if state_of(store) == "finished" else None


class _Line(Thread):
    """The way to one tracker.

    Attributes:
        step: the last that was taken, by this driver or one before.
    """

    def __init__(self, name: str, folder: Path, run: str, config: Mapping[str, Any], note: Note) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self._tracker, self._note = name, note
        self._mark = folder / f"{name}.json"
        noted = _read(self._mark)
        self.step: int = noted.get("step", 0)
        self._session = Session(name=run, folder=folder / name, config=config, key=noted.get("key", ""))
        self._queue: SimpleQueue[Sequence[Point] | None] = SimpleQueue()
        self.start()

    def take(self, points: Sequence[Point]) -> None:
        """Returns at once."""
        self.step = max([self.step, *(step for step, _ in points)])
        self._queue.put(points)

    def close(self) -> None:
        """Waits for what is on its way, but not for ever."""
        self._queue.put(None)
        self.join(_PATIENCE)
        if self.is_alive():
            self._note(f"warning: the tracker {self._tracker} did not end; what it was told last may be missing there")

    def run(self) -> None:
        try:
            self._session.folder.mkdir(parents=True, exist_ok=True)
            module, _, name = _OPENED[self._tracker].partition(":")
            tracker: Tracker = getattr(import_module(module), name)(self._session)
            while (points := self._queue.get()) is not None:
                for step, values in points:
                    self._write(step, tracker.key)
                    tracker.log(step, values)
            tracker.close()
        except Exception as error:  # a run is worth more than its curves
            text = redacted(" ".join(f"{type(error).__name__}: {error}".split()))
            self._note(f"warning: the tracker {self._tracker} failed, and the run goes on without it ({text})")

    def _write(self, step: int, key: str) -> None:
        unfinished = self._mark.with_suffix(".new")
        unfinished.write_text(json.dumps({"step": step, "key": key}), encoding="utf-8")
        unfinished.replace(self._mark)


def _read(mark: Path) -> dict[str, Any]:
    try:
        noted: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted
