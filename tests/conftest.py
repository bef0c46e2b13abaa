"""Settings for every test, and the command line, called in this process."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from evomerge.cli import main
from evomerge.runs.schema import connect as flushing

# The same examples every time: a run that passes here passes elsewhere. How long one takes depends on the machine;
# pytest-timeout catches what hangs.
settings.register_profile("evomerge", deadline=None, derandomize=True)
settings.load_profile("evomerge")


@pytest.fixture(scope="module")
def without_flushing() -> Iterator[None]:
    """Runs do not wait for the disk: drivers die here by exceptions and signals, never by power cuts."""

    def connect(path: Path) -> sqlite3.Connection:
        db = flushing(path)
        db.execute("PRAGMA synchronous = OFF")
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.runs.store.connect", connect)
        yield


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evomerge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Calls the command line in this process: exit code, output, error output."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
