"""Stopping the real program: one signal drains, two stop at once, and the run goes on afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.runs import RunStore

SMALL = [
    "--executor", "serial",
    "--set", "algorithm={kind: nsga2, population: 20}",
    "--set", "fitness.items={search: 64, confirm: 64}",
]  # fmt: skip
SHORT = "budget.evaluations=45"
LONG = "budget.evaluations=100005"
"""More than is done before a signal arrives, however slow the one who sends it."""


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """Runs of these tests hear SIGHUP, also where the tests themselves do not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(folder: Path, budget: str) -> subprocess.Popen[str]:
    """A run that has its first results."""
    command = [sys.executable, "-m", "evomerge", "run", "quickstart", "--out", str(folder), *SMALL, "--set", budget]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent)
    while process.poll() is None:
        if RunStore.exists(folder):
            with RunStore.read(folder) as store:
                if len(store.results()) >= 3:
                    return process
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_finishes_what_is_in_flight(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    process = start(folder, LONG)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert not err
    assert f"evomerge run {folder}" in out
    with RunStore.read(folder) as store:
        assert store.meta("state") == "stopped"
        assert {attempt.status for attempt in store.attempts()} == {"scored"}
        assert len(store.results()) >= 3


def test_two_signals_stop_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, SHORT)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, 130), err
    assert "Traceback" not in err
    with RunStore.read(folder) as store:
        before = {(result.candidate, result.phase): result.responses for result in store.results()}
    command = [sys.executable, "-m", "evomerge", "run", str(folder), *SMALL, "--set", SHORT]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    with RunStore.read(folder) as store:
        after = {(result.candidate, result.phase): result.responses for result in store.results()}
        assert store.meta("state") == "finished"
    assert before.items() <= after.items()
    assert sum(phase == "search" for _, phase in after) == 45
