"""A folder as a reader of the docs has it: own models, own tasks, an experiment, and a run of it that has ended."""

from __future__ import annotations

import csv
import random
import shutil
from pathlib import Path

import pytest

import evomerge
from evomerge.config import shipped_folder

MINE = """\
version: 1
name: mine
pool:
  base: path/to/base
  experts: {math: path/to/math, code: path/to/code}
space: task_arithmetic
fitness:
  tasks: [path/to/tasks]
  objectives: [{name: maths, task: my_maths}, {name: logic, task: my_logic}]
  items: {search: 16, confirm: 32}
algorithm: {kind: nsga2, population: 4}
budget: {evaluations: 24}
"""
TIES = """\
merge_method: ties
base_model: path/to/base
dtype: bfloat16
models:
  - {model: path/to/math, parameters: {weight: 0.6, density: 0.5}}
  - {model: path/to/code, parameters: {weight: 0.4, density: 0.5}}
"""


def lay_out(folder: Path) -> None:
    """Models and tasks: the quickstart's, by the names that the docs use."""
    models = shipped_folder("experiments") / "quickstart" / "models"
    for place, source in {"base": "base", "math": "rev", "code": "sort"}.items():
        shutil.copytree(models / source, folder / "path" / "to" / place)
    tasks = folder / "path" / "to" / "tasks"
    tasks.mkdir()
    shipped = shipped_folder("fitness") / "tasks" / "quickstart"
    for name, source in {"my_maths": "rev", "my_logic": "sort"}.items():
        text = (shipped / f"quickstart_{source}.yaml").read_text().replace(f"quickstart_{source}", name)
        (tasks / f"{name}.yaml").write_text(text)
        shutil.copy(shipped / f"{source}.jsonl", tasks)


def write_scores(file: Path) -> None:
    """Answers of 20 models to 40 items, where some models are better than others."""
    dice = random.Random(0)
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["model", *range(40)])
        for model in range(20):
            rows.writerow([f"m{model}", *(int(dice.random() < (model + 1) / 22) for _ in range(40))])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder, made once; a copy of it lies beside, since a run remembers where its models are."""
    folder = tmp_path_factory.mktemp("docs") / "reader"
    folder.mkdir()
    lay_out(folder)
    for name, text in {"mine.yaml": MINE, "my.yaml": MINE, "ties.yml": TIES}.items():
        (folder / name).write_text(text)
    write_scores(folder / "scores.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = evomerge.run("mine.yaml")
        run.report()
        shutil.copy(run.export("knee") / "recipe.json", "recipe.json")
    for name in ("a", "b", "quickstart"):
        shutil.copytree(folder / "runs" / "mine", folder / "runs" / name)
    shutil.copytree(folder, folder.with_name("kept"))
    return folder


@pytest.fixture
def reader(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as it was made, as the current folder."""
    shutil.rmtree(finished)
    shutil.copytree(finished.with_name("kept"), finished)
    monkeypatch.chdir(finished)
    return finished
