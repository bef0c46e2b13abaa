"""What executors tell while a run goes on: all of it into a file, what needs a person's eye also to that person."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evomerge.secrecy import redacted

__all__ = ["journal"]


class _Telling(logging.Handler):
    """Hands the text of a record on, without secrets."""

    def __init__(self, tell: Callable[[str], None], level: int) -> None:
        super().__init__(level)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(redacted(self.format(record)))


@contextmanager
def journal(file: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Listens to the executors of this process.

    Args:
        file: takes every line, with its time; a disk that refuses it fails nothing.
        note: takes warnings.
    """
    logger = logging.getLogger("evomerge.workers")
    writing, telling = _Telling(lambda line: _append(file, line), logging.INFO), _Telling(note, logging.WARNING)
    writing.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in (writing, telling):
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.level, logger.propagate = before
        for handler in (writing, telling):
            logger.removeHandler(handler)


def _append(file: Path, line: str) -> None:
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(f"{line}\n")
