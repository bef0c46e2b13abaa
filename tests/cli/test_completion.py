"""What a shell offers for a half-typed command line."""

from __future__ import annotations

import json
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.config import shipped_names
from evomerge.runs import RunStore

Run = Callable[..., tuple[int, str, str]]
Offered = Callable[[str], list[str]]


@pytest.fixture
def offered(evomerge: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Offered:
    """What bash is offered for a line, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def offered_(line: str) -> list[str]:
        words = shlex.split(line) + ([""] if line.endswith(" ") else [])
        monkeypatch.setenv("_EVOMERGE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        code, out, err = evomerge()
        assert (code, err) == (0, "")
        return out.split("\n")[:-1] if out.strip() else []

    return offered_


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as names go."""
    objectives = [{"name": name} for name in ("rev", "sort")]
    RunStore.create(tmp_path / "runs" / "mine", {"experiment": {"fitness": {"objectives": objectives}}}).close()
    with sqlite3.connect(tmp_path / "runs" / "mine" / "run.db") as db:
        rows = [
            (number, "anchor" if number < 2 else "search", ("base", "math", "", "")[number], -1, 0, None, "", "")
            for number in range(4)
        ]
        db.executemany("INSERT INTO candidate VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        results = [(number, number, "confirm", 0, "", "{}", 0, None, "", None) for number in (1, 3)]
        db.executemany("INSERT INTO result VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", results)
    return tmp_path / "runs" / "mine"


def test_experiments_by_shipped_name_and_by_file(offered: Offered, tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").touch()
    (tmp_path / "quick.txt").touch()
    shipped = [name for name in shipped_names("experiments") if name.startswith("quick")]
    assert len(shipped) > 1
    for command in ("check", "plan", "pool", "run", "bank import matrix.csv --experiment"):
        assert offered(f"evomerge {command} quick") == [*shipped, "quick.yaml"]


def test_run_folders(offered: Offered, run: Path) -> None:
    for command in ("status ", "report ", "export r", "replay runs/", "report runs/mine --random "):
        assert offered(f"evomerge {command}") == ["runs/mine"]
    assert offered("evomerge run ru") == ["runs/", "runs/mine"]
    assert offered("evomerge status runs/other") == []


def test_paths_go_on_as_they_were_typed(offered: Offered, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent.parent))
    assert offered("evomerge status ./ru") == ["./runs/mine"]
    assert offered("evomerge status ~/runs/") == ["~/runs/mine"]
    assert offered("evomerge check ~/") == ["~/runs/"]
    assert offered("evomerge export ~/runs/mine --candidate b") == ["best:rev", "best:sort", "base"]
    assert offered("evomerge status ~nobody-of-that-name/") == []


def test_candidates_of_the_run_that_was_typed(offered: Offered, run: Path) -> None:
    names = ["knee", "best:rev", "best:sort", "base", "math", "1", "3"]
    for command in ("export", "replay"):
        assert offered(f"evomerge {command} runs/mine --candidate ") == names
    assert offered("evomerge export runs/mine --candidate b") == ["best:rev", "best:sort", "base"]
    assert offered("evomerge export --candidate ") == ["knee"]
    assert sorted(path.name for path in run.iterdir()) == ["run.db", "run.lock"]


@pytest.mark.parametrize("content", [b"", b"no database", json.dumps({}).encode()])
def test_what_cannot_be_read_offers_nothing(offered: Offered, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.db").write_bytes(content)
    assert offered("evomerge export broken --candidate ") == []
    assert offered("evomerge export nowhere --candidate ") == ["knee"]


def test_executors_and_trackers(offered: Offered) -> None:
    assert offered("evomerge run quickstart --executor r") == ["ray"]
    assert set(shipped_names("cluster")) < {*offered("evomerge run quickstart --executor ")}
    assert offered("evomerge run quickstart --track t") == ["tensorboard", "trackio"]


def test_offering_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from evomerge.cli import completion\n"
        "completion.starts(''), completion.executors(''), completion.runs('')\n"
        "print(sorted({'numpy', 'pydantic', 'yaml', 'rich', 'torch', 'evomerge.config'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
