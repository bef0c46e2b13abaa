"""A terminal that others write to, too, and that may vanish: neither spoils what is shown, nor ends the program."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

__all__ = ["Lasting", "undisturbed"]


class Lasting:
    """A stream that goes on without a reader: a closed pipe or a terminal that vanished takes nothing more, silently.

    Args:
        file: where texts go while somebody takes them.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Takes a text, and says that all of it was written."""
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        self._try(self._file.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:  # what is left in buffers must go somewhere, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


@contextmanager
def undisturbed(log: Path) -> Iterator[TextIO]:
    """Keeps a terminal for one writer: what libraries and their processes print there goes to a log file.

    Yields:
        The terminal, if standard output is one; standard output as it is otherwise.
    """
    if not sys.stdout.isatty():
        yield sys.stdout
        return
    sys.stdout.flush()
    with ExitStack() as undo:
        terminal = undo.enter_context(os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"))
        noise = undo.enter_context(_noise(log))
        for stream in (sys.stdout, sys.stderr):
            if stream.isatty():
                undo.callback(_restore, os.dup(stream.fileno()), stream)
                os.dup2(noise, stream.fileno())
        yield terminal


@contextmanager
def _noise(log: Path) -> Iterator[int]:
    """The descriptor of a log file, which goes again if nothing was written; of nowhere if there is no room."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        file = os.open(os.devnull, os.O_WRONLY)
    try:
        yield file
    finally:
        os.close(file)
        with suppress(OSError):
            if not log.stat().st_size:
                log.unlink()
                log.parent.rmdir()  # of a run that never began; a folder that holds anything stays
                log.parent.parent.rmdir()


def _restore(saved: int, stream: TextIO) -> None:
    with suppress(OSError):
        stream.flush()
    os.dup2(saved, stream.fileno())
    os.close(saved)
