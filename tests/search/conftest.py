"""Runs of these tests do not wait for the disk: drivers die here by exceptions, never by power cuts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.runs.schema import connect as flushing


@pytest.fixture(scope="module", autouse=True)
def without_flushing() -> Iterator[None]:
    def connect(path: Path) -> sqlite3.Connection:
        db = flushing(path)
        db.execute("PRAGMA synchronous = OFF")
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.runs.store.connect", connect)
        yield
