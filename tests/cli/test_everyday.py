"""What a newcomer types before a run: init from a list of questions, plan with a time, doctor, help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.config import shipped_folder

Run = Callable[..., tuple[int, str, str]]

MODELS = shipped_folder("experiments") / "quickstart" / "models"
PAIR = ["--base", str(MODELS / "base"), *(f"--expert={name}={MODELS / name}" for name in ("rev", "sort"))]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """As many as a small team writes in an hour."""
    lines = (shipped_folder("fitness") / "tasks" / "quickstart" / "rev.jsonl").read_text().splitlines()[:40]
    file = tmp_path / "my questions.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_questions_become_a_task_that_runs(tmp_path: Path, questions: Path, evomerge: Run) -> None:
    file = tmp_path / "mine.yaml"
    code, out, err = evomerge("init", file, *PAIR, "--questions", questions)
    assert code == 0, err
    task = tmp_path / "mine.my-questions.yaml"
    assert str(task) in out
    assert evomerge("check", file)[0] == 0
    task.write_text(task.read_text().replace('" {{answer}}"', '"{{answer}}"'))
    code, out, err = evomerge("plan", file, "--probe")
    assert code == 0, err
    told = " ".join(out.split())
    assert "measured here on 2 random candidates" in told
    assert "tokens" in told
    assert "search items 3,172 (13 for each of 1 tasks)" in told


def test_a_run_says_early_that_no_model_answers(tmp_path: Path, questions: Path, evomerge: Run) -> None:
    file = tmp_path / "mine.yaml"
    assert evomerge("init", file, *PAIR, "--questions", questions)[0] == 0  # these answers follow no space
    changes = ("--set", "algorithm.population=4", "--set", "budget.evaluations=12")
    code, out, err = evomerge("run", file, "--out", tmp_path / "run", *changes)
    assert code == 0, err
    told = " ".join(out.split())
    warning = "warning: no model answers any item of 'my-questions': most likely its prompts"
    assert told.count(warning) == 1
    assert told.index(warning) < told.index("confirming") < told.index("Nothing to compare: no model answers any item.")


def test_questions_beside_a_task(tmp_path: Path, questions: Path, evomerge: Run) -> None:
    file, tasks = tmp_path / "mine.yaml", shipped_folder("fitness") / "tasks" / "quickstart"
    assert evomerge("init", file, *PAIR, "--questions", questions, "--task", tasks)[0] == 0
    assert "kind: islands" in file.read_text()
    assert evomerge("check", file)[0] == 0


def test_questions_that_are_none(tmp_path: Path, evomerge: Run) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "answer": ""}\n\nnot json\n[1]\n{"answer": 3, "prompt": "b"}\n')
    file = tmp_path / "mine.yaml"
    code, _, err = evomerge("init", file, *PAIR, "--questions", bad)
    assert code == 2
    for text in ("(line 1)", "(line 3)", "(line 4)", "(line 5)", "4 faults", "'answer' is 3"):
        assert text in err, text
    bad.write_text('{"prompt": "a", "answer": "b"}\n' * 5)
    assert "expected at least 12 questions" in evomerge("init", file, *PAIR, "--questions", bad)[2]
    assert "cannot be read" in evomerge("init", file, *PAIR, "--questions", tmp_path / "none.jsonl")[2]
    assert "--questions" in evomerge("init", file, *PAIR)[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl"]


def test_nothing_is_left_of_an_init_that_failed(tmp_path: Path, questions: Path, evomerge: Run) -> None:
    taken = tmp_path / "mine.my-questions.yaml"
    taken.write_text("task: mine\n")
    code, _, err = evomerge("init", tmp_path / "mine.yaml", *PAIR, "--questions", questions)
    assert code == 2
    assert "a name that is free" in err
    assert not (tmp_path / "mine.yaml").exists()
    assert taken.read_text() == "task: mine\n"


def test_plan_tells_time_only_from_a_figure(evomerge: Run) -> None:
    assert "--probe scores some here" in " ".join(evomerge("plan", "quickstart")[1].split())
    gpus = ("--set", "executor.gpus=0.5")
    code, out, _ = evomerge("plan", "quickstart", "--seconds", "36", *gpus)
    assert code == 0
    told = " ".join(out.split())
    assert "candidates per hour 200 with 2 workers" in told
    # 245 candidates and 17 finalists on 256 / 96 times the items, 36 s each on half a GPU
    assert "GPU-hours up to 1.5" in told
    assert "73.5 min of search, up to 13.6 min of confirmation" in told


@pytest.mark.parametrize(
    ("in_flight", "asked"),
    [("null", "1 generations of 20 + 1 generations of 7"), ("2", "27, 2 of them in work at any time")],
)
def test_plan_promises_no_more_points_than_a_grid_has(in_flight: str, asked: str, evomerge: Run) -> None:
    changes = (
        "space={kind: parameter, operator: {name: task_arithmetic}, knots: 1, genes: {weight: {edges: first}}}",
        f"algorithm={{kind: grid, levels: 3, in_flight: {in_flight}}}",
        "budget.evaluations=500",
    )
    code, out, err = evomerge("plan", "quickstart", *(part for change in changes for part in ("--set", change)))
    assert code == 0, err
    assert f"32 = 5 anchors + {asked}; 468 of the budget are left, as nothing more is asked" in " ".join(out.split())


def test_doctor_says_what_to_do(evomerge: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    out = " ".join(evomerge("doctor")[1].split())
    assert "no no-such-compiler" in out
    assert "to fix it: install g++" in out
    assert "which takes files and locks" in out


def test_help_tells_the_exit_codes_and_offers_completion(evomerge: Run) -> None:
    out = " ".join(evomerge("--help")[1].split())
    for part in ("Exit codes: 0 done", "130 interrupted twice", "--install-completion"):
        assert part in out


def test_the_trackers_of_a_run_are_checked(evomerge: Run) -> None:
    changes = [f"trackers={json.dumps(names)}" for names in (["neptune"], ["wandb", "wandb"])]
    for change, expected in zip(changes, ("'tensorboard'", "each tracker once"), strict=True):
        code, _, err = evomerge("check", "quickstart", "--set", change)
        assert code == 2
        assert expected in err
