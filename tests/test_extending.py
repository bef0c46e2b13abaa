"""The examples of docs/extending.md work as they stand there, all three in one run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.config import load_experiment, shipped_folder
from evomerge.errors import ConfigError

DOC = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text()
MODELS = shipped_folder("experiments") / "quickstart" / "models"
FILES = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOC, flags=re.S)
CALLS = """
import sys
from evomerge.cli import main

for line in sys.stdin.read().splitlines():
    sys.argv = ["evomerge", *line.split()]
    try:
        main()
    except SystemExit as exit_:
        if exit_.code:
            print(line, "exits", exit_.code)
            raise
"""


def commands(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Command lines in one fresh process, because plugins stay registered."""
    given = "\n".join(lines)
    return subprocess.run(
        [sys.executable, "-c", CALLS], input=given, capture_output=True, text=True, check=False, cwd=folder
    )


def experiment(**changes: Any) -> dict[str, Any]:
    tasks = shipped_folder("fitness") / "tasks" / "quickstart"
    data = {
        "version": 1,
        "name": "mine",
        "plugins": ["hill_climber.py", "one_dial.py", "fading.py"],
        "pool": {"base": str(MODELS / "base"), "experts": {n: str(MODELS / n) for n in ("rev", "sort")}},
        "space": {"kind": "one_dial", "operator": "fading"},
        "fitness": {
            "tasks": [str(tasks)],
            "objectives": [{"name": "rev", "task": "quickstart_rev"}],
            "items": {"search": 4, "confirm": 4},
            "confirm": {"shortlist": 1},
        },
        "algorithm": {"kind": "hill_climber", "step": 0.2},
        "budget": {"evaluations": 8},
        "engine": {"device": "cpu"},
        "executor": {"kind": "serial"},
    }
    return data | changes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    for name, source in FILES:
        (tmp_path / name).write_text(source)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment()))
    return tmp_path


def test_the_examples_run_and_everything_after_them_does(folder: Path) -> None:
    assert [name for name, _ in FILES] == ["hill_climber.py", "one_dial.py", "fading.py"]
    assert "plugins: [hill_climber.py, one_dial.py, fading.py]" in DOC
    done = commands(folder, "check mine.yaml", "plan mine.yaml", "run mine.yaml --out mine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fading" in done.stdout
    later = commands(folder, "status mine", "report mine", "replay mine", "export mine --candidate knee", "run mine")
    assert later.returncode == 0, later.stdout + later.stderr
    assert "1 generations: the algorithm asks for the recorded genes" in later.stdout
    assert (folder / "mine" / "export" / "knee" / "model.safetensors").is_file()
    (folder / "fading.py").write_text((folder / "fading.py").read_text() + "\n")
    assert "plugins.fading.py" in commands(folder, "run mine.yaml --out mine").stderr
    assert "fading.py is not what the run began with; put that file back" in commands(folder, "report mine").stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\nraise LookupError('no luck')\n", "broken.py (line 2) fails: LookupError: no luck"),
        ("def x(:\n", "broken.py (line 1) fails: SyntaxError"),
        ("import sys\nsys.exit(3)\n", "broken.py (line 2) fails: SystemExit: 3"),
        (None, "broken.py cannot be read: No such file"),
        (
            "from typing import Literal\nfrom evomerge.config import AlgorithmConfig\n"
            "@AlgorithmConfig.register('a:b')\nclass Mine(AlgorithmConfig):\n    kind: Literal['cma']\n",
            "the kind 'cma' is taken by evomerge.config.algorithms.CmaConfig; choose another",
        ),
        (
            "from evomerge.recipe import OPERATORS, register_operator\nregister_operator(OPERATORS['ties'])(print)\n",
            "the operator 'ties' is there already; choose another name",
        ),
        (
            "from evomerge.config import AlgorithmConfig\n"
            "@AlgorithmConfig.register('a:b')\nclass Mine(AlgorithmConfig):\n    kind: str\n",
            "Mine needs a key kind: Literal['...']",
        ),
    ],
)
def test_a_plugin_that_fails_is_a_fault_among_others(tmp_path: Path, source: str | None, expected: str) -> None:
    if source is not None:
        (tmp_path / "broken.py").write_text(source)
    known = {"space": "task_arithmetic", "algorithm": {"kind": "nsga4"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment(plugins=["broken.py"], **known)))
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(tmp_path / "mine.yaml"))
    assert expected in str(caught.value)
    assert "$.plugins (line " in str(caught.value)
    assert "did you mean 'nsga" in str(caught.value)


def test_two_plugins_of_one_name_are_refused(tmp_path: Path) -> None:
    data = experiment(plugins=["a/x.py", "b/x.py"], space="task_arithmetic", algorithm={"kind": "cma"})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text("")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=r"expected each file name once; got x\.py twice"):
        load_experiment(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("builder", "keys", "expected"),
    [
        ("lambda *_: 1 / 0", "    population: int = 4", "'mine' cannot be made: ZeroDivisionError"),
        ("'nowhere:build'", "    population: int = 4", "'mine' cannot be made: ModuleNotFoundError"),
        ("lambda *_: None", "    population: int = 4", "expected an evomerge.population.Algorithm; got NoneType"),
        ("lambda *_: None", "", "mine: expected a key population, or a population_at of its own"),
    ],
)
def test_an_algorithm_that_cannot_be_made_is_refused_by_check(
    folder: Path, builder: str, keys: str, expected: str
) -> None:
    (folder / "mine.py").write_text(
        "from typing import Literal\nfrom evomerge.config import AlgorithmConfig\n"
        f"@AlgorithmConfig.register({builder})\nclass Mine(AlgorithmConfig):\n    kind: Literal['mine']\n{keys}\n"
    )
    data = experiment(plugins=["mine.py"], space="task_arithmetic", algorithm={"kind": "mine"})
    (folder / "mine.yaml").write_text(yaml.safe_dump(data))
    done = commands(folder, "check mine.yaml")
    assert done.returncode == 2
    assert expected in done.stderr
