"""What the README names exists, and what is shipped loads. What it tells to type is run in tests/docs/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from evomerge.cli import app
from evomerge.config import load_experiment, shipped_names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_every_command_is_in_the_readme_and_has_help() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert f"`evomerge {name}`" in README, name
        assert command.help, name


def test_paths_named_in_the_readme_exist() -> None:
    named = re.findall(r"`((?:experiments|fitness|search_spaces|cluster|docs)/[^`]*)`", README)
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", shipped_names("experiments"))
def test_shipped_experiments_load(name: str) -> None:
    try:
        assert load_experiment(name).name == name
    except Exception as error:
        made = ("expected a model folder", "expected a run folder")
        if name == "quickstart" or not any(words in str(error) for words in made):
            raise
        pytest.skip(f"{name}: its models are made by a command of their own")
