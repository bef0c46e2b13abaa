"""The tutorial as a newcomer types it: every command line of it, and what each takes."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from table import Row

__all__ = ["tutorial"]

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 60


def steps() -> Iterator[tuple[str, list[str]]]:
    """Each command line of the tutorial, and the lines that it is said to print."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    for language, block in re.findall(r"^```(sh|console)\n(.*?)^```", text, flags=re.S | re.M):
        shown = block if language == "console" else "".join(f"$ {line}\n" for line in block.splitlines())
        for step in re.split(r"^\$ ", shown, flags=re.M)[1:]:
            line, *printed = step.splitlines()
            yield line, printed


def typed(line: str, folder: Path) -> tuple[float, float]:
    """Run a command line; wall and CPU seconds.

    Raises:
        CalledProcessError: it failed.
    """
    words = shlex.split(line)
    command = [sys.executable, "-m", *words] if words[0] == "evomerge" else words
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tutorial() -> Iterator[Row]:
    """A row for each command, then one for all of them: whoever types no more than these has a front and a model."""
    whole = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("experiments", "fitness"):
            (folder / name).symlink_to(ROOT / name)
        for line, _ in steps():
            words = shlex.split(line)
            if words[0] == "cd":
                folder /= words[1]
            elif words[0] != ".":  # the environment is there
                wall, cpu = typed(line, folder)
                whole += wall
                shown = line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."
                yield Row(name=shown, target="-", measured=f"{wall:.1f} s, {cpu:.1f} s of CPU", met=None)
        there = (folder / "runs" / "mine" / "export" / "knee" / "model.safetensors").is_file()
    yield Row(name="the tutorial alone", target="a front and a model", measured=f"{whole:.0f} s", met=there)
