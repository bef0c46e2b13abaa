"""`fitness.screen` as a person writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.config import ScreenConfig, load_experiment, shipped_folder
from evomerge.errors import ConfigError


def test_the_shipped_one_loads() -> None:
    screen = load_experiment("quickstart", ["fitness=quickstart_screened"]).fitness.screen
    text = shipped_folder("fitness") / "tasks" / "quickstart" / "screen.txt"
    assert screen == ScreenConfig(text=text, tokens=16, limit=6.0)


def test_it_is_off_when_left_out() -> None:
    assert load_experiment("quickstart").fitness.screen is None


def test_uniform_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc")
    screen = ScreenConfig(text=tmp_path / "text.txt")
    assert (screen.tokens, screen.limit) == (64, "uniform")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("{text: nowhere.txt}", "expected a text file; nothing at"),
        ("{tokens: 3}", "text"),
        ("{text: nowhere.txt, tokens: 1}", "tokens"),
        ("{text: nowhere.txt, limit: 0}", "limit"),
        ("{text: nowhere.txt, limit: unifrom}", "limit"),
        ("{text: nowhere.txt, token: 64}", "token"),
    ],
)
def test_faults_are_named(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"\$\.fitness\.screen[\s\S]*{message}"):
        load_experiment("quickstart", [f"fitness.screen={setting}"])
