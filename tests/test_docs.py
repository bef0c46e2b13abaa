"""Docs cannot rot: what the README says is what the program does."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from evomerge.cli import app
from evomerge.config import load_experiment, shipped_folder, shipped_names

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_is_in_the_readme_and_has_help() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        assert f"`evomerge {name}`" in README, name
        assert command.help, name


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {line.split()[1] for line in shell_lines() if line.startswith("make ")} <= targets


def test_the_readmes_commands_run_in_their_order(tmp_path: Path) -> None:
    models = shipped_folder("experiments") / "quickstart" / "models"
    for place, source in {"base": "base", "math": "rev", "code": "sort"}.items():
        shutil.copytree(models / source, tmp_path / "path" / "to" / place)
    shutil.copytree(shipped_folder("fitness") / "tasks" / "quickstart", tmp_path / "path" / "to" / "tasks")
    lines = [line for line in shell_lines() if line.startswith("evomerge ")]
    assert [line.split()[1] for line in lines] == ["init", "check", "plan", "run", "export"]
    for line in lines:
        small = ["--set", "budget.evaluations=24"] if line.startswith("evomerge run") else []
        command = [sys.executable, "-m", *shlex.split(line), *small]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert (tmp_path / "runs" / "mine" / "export" / "knee" / "model.safetensors").exists()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README + (ROOT / "docs/architecture.md").read_text()))
def test_links_lead_somewhere(link: str) -> None:
    assert link.startswith("https://") or (ROOT / link).exists()


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
