"""Runs of these tests do not wait for the disk."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry(without_flushing: None) -> None:
    """For all tests of this folder."""
