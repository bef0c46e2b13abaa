"""The live screen on a real terminal, which is a pseudo-terminal here; and a terminal that vanishes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from evomerge.runs import RunStore

SMALL = [
    "--executor", "serial",
    "--set", "algorithm={kind: nsga2, population: 4}",
    "--set", "budget.evaluations=105",  # long enough for several frames
    "--set", "fitness.items={search: 32, confirm: 32}",
    "--set", "fitness.confirm.shortlist=1",
]  # fmt: skip


def on_a_terminal(folder: Path, enough: Callable[[str], bool]) -> tuple[int, str]:
    """Runs until something is on the screen, then takes the terminal away; exit code and what was seen."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "evomerge", "run", "quickstart", "--out", str(folder), *SMALL]
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=folder.parent,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "50"},
    )
    os.close(slave)
    seen, deadline = "", time.monotonic() + 200
    while time.monotonic() < deadline and not enough(seen):
        if select.select([master], [], [], 0.5)[0]:
            try:
                seen += os.read(master, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                break
        elif process.poll() is not None:
            break
    os.close(master)
    return process.wait(timeout=200), seen


def test_it_shows_the_run_and_then_the_verdict(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, seen = on_a_terminal(folder, lambda _: False)
    assert code == 0, seen
    for part in ("starting workers", "generation ", "of 105", "estimated front", "worker ", "Report:"):
        assert part in seen, part
    assert "Traceback" not in seen
    assert not (folder / "logs" / "console.log").exists()


def test_a_terminal_that_vanishes_ends_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, _ = on_a_terminal(folder, lambda seen: "generation " in seen)
    assert code == 0
    with RunStore.read(folder) as store:
        assert store.meta("state") == "finished"
        assert store.counts()["searched"] == 105
    assert (folder / "report.html").exists()
