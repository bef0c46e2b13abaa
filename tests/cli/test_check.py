"""What `check` and `plan` say of experiments that cannot be run, or that choose from much, before anything is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from evomerge.config import shipped_folder

Run = Callable[..., tuple[int, str, str]]
MODELS = shipped_folder("experiments") / "quickstart" / "models"
TASKS = shipped_folder("fitness") / "tasks" / "quickstart"
NSGA2 = {"kind": "nsga2", "population": 4}


def written(folder: Path, **changes: Any) -> Path:
    data = {
        "version": 1,
        "name": "mine",
        "pool": {"base": str(MODELS / "base"), "experts": {n: str(MODELS / n) for n in ("rev", "sort")}},
        "space": "task_arithmetic",
        "fitness": {
            "tasks": [str(TASKS)],
            "objectives": [{"name": name, "task": f"quickstart_{name}"} for name in ("rev", "sort")],
            "items": {"search": 8, "confirm": 16},
        },
        "algorithm": NSGA2,
        "budget": {"evaluations": 28},
        "engine": {"device": "cpu"},
    }
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(data | changes))
    return file


def stages(**first: Any) -> dict[str, Any]:
    return {"kind": "refined", "stages": [{"evaluations": 4, "algorithm": NSGA2, **first}, {"algorithm": NSGA2}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"kind": "cma", "warm_start": "nowhere"}}, "nowhere: expected a run"),
        ({"algorithm": stages(knots=9)}, "stages[0]: expected at most as many knots as the space has; got 9"),
        (
            {"algorithm": stages(knots=4, algorithm={"kind": "map", "population": 4})},
            "stages[0]: map takes at most 8 genes",
        ),
        ({"algorithm": {"kind": "grid", "population": 4}}, "grid needs"),
        ({"algorithm": {"kind": "graft"}}, "graft searches spaces of kind routing; got parameter"),
        ({"algorithm": {"kind": "m2n2"}}, "m2n2 searches spaces that cross genomes"),
        ({"space": {"kind": "routing", "scales": {"low": 1e-9}}}, "should be greater than or equal to 0.01"),
        ({"space": {"kind": "soup", "knots": 5}}, "expected at most 4, the models' number of layers; got 5"),
    ],
)
def test_what_cannot_be_run_is_refused_by_check(
    evomerge: Run, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    code, _, error = evomerge("check", written(tmp_path, **changes))
    assert code == 2
    assert message in " ".join(error.split())


def test_a_task_that_is_nowhere_is_a_fault(evomerge: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("quickstart_rev", "quickstart_sortt", "no_such_task_at_all")
    fitness = {
        "tasks": [str(TASKS)],
        "objectives": [{"name": name, "task": name} for name in names],
        "items": {"search": 8, "confirm": 16},
    }
    file = written(tmp_path, fitness=fitness)
    code, out, error = evomerge("check", file)
    assert code == 2
    assert not out
    assert "fitness: 2 faults" in error
    assert "task 'quickstart_sortt': unknown; did you mean 'quickstart_sort'?" in error
    monkeypatch.setattr("evomerge.guard.find_spec", lambda name: None)
    code, out, error = evomerge("check", file)
    assert code == 0
    assert "mine: ok" in out
    assert error.count("note: ") == 2
    assert "note: the task 'quickstart_sortt' is in no file under fitness.tasks; did you mean" in error


def test_long_lists_of_choices_are_cut_short(evomerge: Run, tmp_path: Path) -> None:
    space = {"kind": "routing", "most": 40, "scales": {}}
    code, out, _ = evomerge("plan", written(tmp_path, space=space, algorithm={"kind": "graft"}))
    assert code == 0
    assert "layer.0, layer.1, ..., layer.39 13 choices: - | base.0 | ... | sort.3" in " ".join(out.split())


def test_more_lists_than_a_person_reads_are_named_only(evomerge: Run, tmp_path: Path) -> None:
    experts = {f"e{number}": str(MODELS / "rev") for number in range(10)}
    transforms = {name: ["none", f"star:{10 + number}"] for number, name in enumerate(experts)}
    space = {
        "kind": "parameter",
        "operator": {"name": "task_arithmetic"},
        "genes": {"weight": {}},
        "transforms": transforms,
    }
    pool = {"base": str(MODELS / "base"), "experts": experts}
    code, out, _ = evomerge("plan", written(tmp_path, pool=pool, space=space))
    words = " ".join(out.split())
    assert code == 0
    assert "transform.e7 none | star:17" in words
    assert "transform.e8, transform.e9 likewise" in words


@pytest.mark.parametrize("command", ["check", "plan"])
def test_experts_that_add_nothing_are_told(evomerge: Run, tmp_path: Path, command: str) -> None:
    copy = tmp_path / "copy"
    copytree(MODELS / "sort", copy)
    (copy / "README.md").write_text("another name for it\n")
    experts = {"none": MODELS / "base", "rev": MODELS / "rev", "sort": MODELS / "sort", "sort_too": copy}
    pool = {"base": str(MODELS / "base"), "experts": {name: str(folder) for name, folder in experts.items()}}
    code, _, err = evomerge(command, written(tmp_path, pool=pool))
    assert code == 0
    assert [line for line in err.splitlines() if "expert '" in line] == [
        "warning: expert 'none': equal to the base in every weight; merging it changes nothing: remove it",
        "warning: expert 'sort_too': the same as 'sort' in every weight; keep one of them",
    ]


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_more_items_than_a_task_has_are_refused_before_anything_runs(
    evomerge: Run, tmp_path: Path, command: str
) -> None:
    where = ("--out", str(tmp_path / "run")) if command == "run" else ()
    code, _, error = evomerge(command, written(tmp_path), "--set", "fitness.items.search=100000", *where)
    assert code == 2
    assert "task 'quickstart_rev' has 512 items; task 'quickstart_sort' has 512 items: expected at least" in error
    assert not (tmp_path / "run").exists()


def test_items_of_a_scorer_are_counted(evomerge: Run, tmp_path: Path) -> None:
    (tmp_path / "voice.py").write_text("def length(engine, items):\n    return [1.0 for _ in items]\n")
    (tmp_path / "few.jsonl").write_text('"one"\n"two"\n"one"\n')
    scorers = {
        "few": {"kind": "function", "function": "voice:length", "items": "few.jsonl"},
        "numbers": {"kind": "function", "function": "voice:length", "items": 10},
    }
    objectives = [{"name": name, "task": name} for name in scorers]
    fitness = {"scorers": scorers, "objectives": objectives, "items": {"search": 8, "confirm": 16}}
    code, _, error = evomerge("check", written(tmp_path, fitness=fitness))
    assert code == 2
    assert "task 'few' has 3 items, 2 different; task 'numbers' has 10 items: expected at least 24 in each" in error


def test_a_run_folder_that_cannot_be_made(evomerge: Run, tmp_path: Path) -> None:
    code, _, error = evomerge("run", written(tmp_path), "--out", "/proc/no-such-run")
    assert code == 2
    assert error.startswith("error: /proc/no-such-run: expected a place where folders can be made")
