"""The reproductions of published methods: experiments load, scripts run, and the overview leaves none out."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from evomerge.config import load_experiment, shipped_folder, shipped_names
from evomerge.population.m2n2 import Member, competition, survivors
from evomerge.spaces import Genome

EXPERIMENTS = shipped_folder("experiments")
OVERVIEW = (EXPERIMENTS / "README.md").read_text()
FOLDERS = sorted(set(re.findall(r"\]\((\w+)/README\.md\)", OVERVIEW)))
READMES = {folder: (EXPERIMENTS / folder / "README.md").read_text() for folder in FOLDERS}


def script(folder: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the experiments, which belongs to no package."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS / folder))
    spec = importlib.util.spec_from_file_location(f"reproduction_{name}", EXPERIMENTS / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_overview_names_every_readme() -> None:
    assert {path.parent.name for path in EXPERIMENTS.glob("*/README.md")} == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_commands_of_a_readme_name_what_is_there(folder: str) -> None:
    commands = re.findall(r"^evomerge \w+ (\S+)", READMES[folder], flags=re.M)
    assert {name for name in commands if "/" not in name} <= set(shipped_names("experiments"))
    for path in re.findall(r"python (experiments/\S+\.py)", READMES[folder]):
        assert (EXPERIMENTS.parent / path).is_file(), path


@pytest.mark.parametrize("name", shipped_names("experiments"))
def test_an_experiment_loads_where_its_models_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that a command makes lie under the home folder, earlier runs under the working one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pool = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())["pool"]
    for model in (pool["base"], *pool["experts"].values()):
        made = model["run"] if isinstance(model, dict) else model
        if made.startswith(("~", "runs/")):
            Path(made).expanduser().mkdir(parents=True, exist_ok=True)
    assert load_experiment(name).name == name


def test_checkpoints_are_trained_on_their_own_mixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("quickstart", "make_checkpoints", monkeypatch)
    courses = [made.course(number) for number in range(made.CHECKPOINTS)]
    assert len({tuple(course.mixture.values()) for course in courses}) == made.CHECKPOINTS
    monkeypatch.setattr(made, "FEWEST_STEPS", 1)
    monkeypatch.setattr(made, "MOST_STEPS", 1)
    made.main(["--out", str(tmp_path), "--count", "2"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["c00", "c01"]
    weights = [(path / "model.safetensors").read_bytes() for path in sorted(tmp_path.iterdir())]
    assert weights[0] != weights[1]


def test_the_long_model_learns_to_write_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("quickstart", "make_long", monkeypatch)
    family = sys.modules["make_family"]
    assert made.with_steps(family.make_item("rc", "abcfed")).answer == "fhabdjjdbahf."
    made.main(["--out", str(tmp_path), "--steps", "1"])
    assert AutoTokenizer.from_pretrained(tmp_path / "long").decode([8]) == "*"


def test_digits_are_bred_and_children_lie_between_their_parents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = script("m2n2", "digits", monkeypatch)
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    for seed in range(8):
        child = digits.crossed(one, other, np.random.default_rng(seed))
        assert (child >= 0.0).all()
        assert (child <= 1.0).all()
    assert digits.crossed(one, one, np.random.default_rng(0)) == pytest.approx(one)
    digits.main(["--passes", "60", "--seeds", "2"])
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in digits.ARMS)


def test_the_network_that_digits_drops_is_the_one_that_survivors_drops() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        solved = (random.random((6, 30)) < 0.4).astype(float)
        members = [
            Member(genome=Genome((k / 6,)), costs=(0.0,), items={(0, 0, j): v for j, v in enumerate(row)})
            for k, row in enumerate(solved.tolist())
        ]
        kept = survivors(members, 5, weights=(1.0,), alpha=1.0)
        worst = int(competition(solved, np.ones(30), alpha=1.0).mean(axis=1).argmin())
        assert kept == tuple(member for k, member in enumerate(members) if k != worst)
