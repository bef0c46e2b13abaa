"""Settings for every test, and the command line, called in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from evomerge.cli import main

# The same examples every time: a run that passes here passes elsewhere. How long one takes depends on the machine;
# pytest-timeout catches what hangs.
settings.register_profile("evomerge", deadline=None, derandomize=True)
settings.load_profile("evomerge")

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
