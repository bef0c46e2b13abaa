from __future__ import annotations

import logging
from pathlib import Path

import pytest

from evomerge.workers.journal import journal
from evomerge.workers.versions import differing, versions_here

log = logging.getLogger("evomerge.workers")


def test_all_goes_to_the_file_and_warnings_to_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "very-secret-text")
    told: list[str] = []
    with journal(tmp_path / "logs" / "driver.log", told.append):
        log.info("a worker is up")
        log.warning("no room, very-secret-text")
    log.info("nobody listens any more")
    lines = (tmp_path / "logs" / "driver.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO a worker is up", "WARNING no room, [A_TOKEN]"]
    assert told == ["no room, [A_TOKEN]"]


def test_a_disk_that_refuses_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with journal(tmp_path / "logs" / "driver.log", print):
        log.info("lost")


def test_builds_of_one_version_are_the_same() -> None:
    ours = {"torch": "2.13.0+cpu", "numpy": "2.0", "lm_eval": "1"}
    theirs = {"torch": "2.13.0+cu128", "numpy": "2.1", "vllm": "1"}
    assert differing(ours, theirs) == ["numpy: 2.0 here, 2.1 there"]
    assert differing(versions_here(), versions_here()) == []
