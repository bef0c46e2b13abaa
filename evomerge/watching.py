"""What a person sees while a run goes on: one live screen on a terminal, one line per generation elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from evomerge.reports import Standing, screen
from evomerge.reports.words import duration
from evomerge.search import Progress
from evomerge.stopping import Stop

__all__ = ["Watch", "watching"]

Watch = Callable[[Progress, Standing | None], None]
"""Takes each step of a run, and where it stands if somebody has just looked."""


@contextmanager
def watching(console: Console, stop: Stop) -> Iterator[Watch]:
    """Show a run on a console; the screen vanishes at the end, the lines stay."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _lines(console, stop)
        return
    view = _Screen(stop)
    with Live(
        get_renderable=view.render,
        console=console,
        refresh_per_second=1,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield view.show


class _Screen:
    """What the live screen shows; drawn by a thread of its own, from what the run told last."""

    def __init__(self, stop: Stop) -> None:
        self._stop, self._began = stop, time.monotonic()
        self._doing = "starting workers"
        self._picture: RenderableType | None = None

    def show(self, progress: Progress, standing: Standing | None) -> None:
        self._doing = _words(progress)
        if standing is not None:
            self._picture = screen(standing, doing="", done=progress.done, planned=progress.planned)

    def render(self) -> RenderableType:
        stopping = "stopping when what is in flight is done: " if self._stop.requested else ""
        now = Text(f"{stopping}{self._doing}, {duration(time.monotonic() - self._began)}", style="bold")
        return now if self._picture is None else Group(now, self._picture)


def _words(progress: Progress) -> str:
    stage = "confirming" if progress.phase == "confirm" else f"generation {progress.generation}"
    stage += "" if progress.in_flight is None else f", {progress.in_flight} in flight"
    failures = f", {progress.failures} failed" if progress.failures else ""
    return f"{stage}: {progress.done} of {progress.planned}{failures}"


def _lines(console: Console, stop: Stop) -> Watch:
    seen: tuple[str, int] | None = None

    def show(progress: Progress, standing: Standing | None) -> None:
        nonlocal seen
        if (progress.phase, progress.generation) != seen or progress.done == progress.planned:
            seen = (progress.phase, progress.generation)
            print(f"{'stopping: ' if stop.requested else ''}{_words(progress)}", file=console.file, flush=True)

    return show
