"""One driver per run: an advisory lock on `run.lock`, held by the operating system until the process ends."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from evomerge.errors import StoreError

__all__ = ["RunLock", "holder"]

_FILE = "run.lock"
_PATIENCE = 1.0  # seconds: longer than `holder` in another process keeps its shared lock


class RunLock:
    """The exclusive right to write to a run folder.

    `flock` rather than `lockf`: it belongs to the open file, so that a second driver inside one process is refused too
    and reading the file elsewhere does not drop it.

    Raises:
        StoreError: another driver has it.
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(folder)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BaseException:
            self.release()
            raise

    def _acquire(self, folder: Path) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreError(
                        f"{folder}: expected to be the only driver of this run; got another one, {_owner(self._file)}; "
                        "wait for it or stop it, or choose another run folder"
                    ) from None
                time.sleep(0.05)

    def release(self) -> None:
        """Gives the right back."""
        os.close(self._file)


def holder(folder: Path) -> str | None:
    """Who drives this run now, for example `pid 4711 on node7`; None when nobody does."""
    try:
        file = os.open(folder / _FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(file)
    finally:
        os.close(file)
    return None


def _owner(file: int) -> str:
    return os.pread(file, 200, 0).decode(errors="replace") or "unknown"
