"""The reference is what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "reference"


def test_the_reference_is_what_the_code_says(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate"), str(tmp_path / "reference")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {file.name: file.read_text() for file in (tmp_path / "reference").iterdir()}
    assert made.keys() == {file.name for file in KEPT.iterdir()}
    stale = [name for name, text in made.items() if text != (KEPT / name).read_text()]
    assert not stale, f"{stale}: run `make reference`"
