"""What a person sees while a run goes on: a live bar on a terminal, one line per generation elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from evomerge.search import Progress

__all__ = ["Watch", "watching"]

Watch = Callable[[Progress, bool], None]
"""Takes each step of a run, and whether a stop was asked for."""


def _words(progress: Progress, stopping: bool) -> str:
    stage = "confirming" if progress.phase == "confirm" else f"generation {progress.generation}"
    failures = f", {progress.failures} failed" if progress.failures else ""
    return f"{'stopping: ' if stopping else ''}{stage}{failures}"


@contextmanager
def watching(console: Console) -> Iterator[Watch]:
    """Show a run on a console; the bar vanishes at the end, the lines stay."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting workers", total=None)

        def show(progress: Progress, stopping: bool) -> None:
            words = _words(progress, stopping)
            bar.update(task, description=words, completed=progress.done, total=progress.planned)

        yield show


def _lines(console: Console) -> Watch:
    seen: tuple[str, int] | None = None

    def show(progress: Progress, stopping: bool) -> None:
        nonlocal seen
        if (progress.phase, progress.generation) != seen or progress.done == progress.planned:
            seen = (progress.phase, progress.generation)
            with suppress(BrokenPipeError):  # whoever read the pipe has gone; the run goes on
                print(
                    f"{_words(progress, stopping)}: {progress.done} of {progress.planned}",
                    file=console.file,
                    flush=True,
                )

    return show
