from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.reports import Summary, write_png


@pytest.mark.parametrize("goals", [("max",), ("max", "min", "max")])
def test_png(summary: Callable[..., Summary], tmp_path: Path, goals: tuple[str, ...]) -> None:
    out = write_png(summary(goals=goals, experts=("$x$", "y_$")), tmp_path / "front.png")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))
