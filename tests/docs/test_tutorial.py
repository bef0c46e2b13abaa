"""The tutorial, from top to bottom, as somebody who follows it alone would type it."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()

Run = Callable[..., tuple[int, str, str]]


def masked(line: str) -> str:
    """A line without its numbers, which differ between machines, and without its columns."""
    return re.sub(r"[\d.,]*\d", "N", " ".join(line.split()))


def test_the_tutorial_from_top_to_bottom(evomerge: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "experiments" / "benchmarks")
    steps = importlib.import_module("newcomer").steps()
    for folder in ("experiments", "fitness"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    for line, printed in steps:
        words = shlex.split(line)
        if words[0] == "evomerge":
            code, out, error = evomerge(*words[1:])
            assert code == 0, f"{line}\n{out}{error}"
            told = [masked(each) for each in out.splitlines()]
            missing = [each for each in printed if each != "..." and masked(each) not in told]
            assert not missing, f"{line} printed\n{out}"
        elif words[0] == "cd":
            os.chdir(words[1])  # monkeypatch goes back to where the test began
        elif words[0] != ".":  # the environment is there
            subprocess.run(line, shell=True, check=True)
    for example in re.findall(r"^```python\n(.*?)^```", TUTORIAL, flags=re.S | re.M):
        exec(compile(example, "tutorial.md", "exec"), {})
    assert Path("runs/mine/export/knee/model.safetensors").exists()
