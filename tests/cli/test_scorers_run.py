"""Scorers through the command line: checked, run, resumed, refused; and what should not be optimized on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.config import shipped_folder
from evomerge.runs import RunStore

Run = Callable[..., tuple[int, str, str]]
MODELS = shipped_folder("experiments") / "quickstart" / "models"
REV = shipped_folder("fitness") / "tasks" / "quickstart" / "rev.jsonl"

SCORER = """
def length(engine, items):
    return [len(item["answer"]) + float(engine.model.lm_head.weight[0, 0] > 100) for item in items]


def broken(engine, items):
    raise LookupError("no such voice")
"""
WRITE = {
    "task": "write",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rev.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer[:-1]}}",
    "target_delimiter": "",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 10, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def experiment(objectives: list[dict[str, Any]], **fitness: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "own",
        "pool": {"base": str(MODELS / "base"), "experts": {n: str(MODELS / n) for n in ("rev", "sort")}},
        "space": "task_arithmetic",
        "fitness": {"objectives": objectives, "items": {"search": 6, "confirm": 6}, **fitness},
        "algorithm": {"kind": "random", "population": 4},
        "budget": {"evaluations": 8},
        "engine": {"device": "cpu"},
        "executor": {"kind": "serial"},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment's folder with a scorer, its items, a text and a task that lets the model write."""
    items = [json.loads(line) for line in REV.read_text().splitlines()[:40]]
    (tmp_path / "rev.jsonl").write_text("".join(json.dumps(item | {"text": item["prompt"]}) + "\n" for item in items))
    (tmp_path / "text.txt").write_text("".join(item["prompt"] for item in items))
    (tmp_path / "mine.py").write_text(SCORER)
    (tmp_path / "write.yaml").write_text(yaml.safe_dump(WRITE))
    return tmp_path


def write(folder: Path, data: dict[str, Any]) -> Path:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def own(function: str = "mine:length", **more: Any) -> dict[str, Any]:
    return {"kind": "function", "function": function, "items": "rev.jsonl", **more}


def means(folder: Path, phase: Any) -> dict[int, dict[tuple[str, str], float]]:
    with RunStore.read(folder) as store:
        return {
            candidate: {(r.task, r.metric): sum(r.values) / len(r.values) for r in responses}
            for candidate, responses in store.responses(phase).items()
        }


def test_a_search_over_scorers_and_tokens(evomerge: Run, folder: Path) -> None:
    objectives = [
        {"name": "right", "task": "write", "metric": "exact_match"},
        {"name": "short", "task": "write", "metric": "tokens", "goal": "min"},
        {"name": "length", "task": "length"},
        {"name": "loss", "task": "text", "metric": "loss", "goal": "min"},
    ]
    drift = {"name": "drift", "task": "drift", "metric": "kl", "at_most": 5.0}
    text = {"text": "text.txt", "block": 8}
    scorers = {"length": own(), "text": {"kind": "loss", **text}, "drift": {"kind": "kl", **text}}
    file = write(folder, experiment(objectives, tasks=["write.yaml"], constraints=[drift], scorers=scorers))
    out = folder / "run"
    assert evomerge("check", file)[::2] == (0, "")
    code, _, error = evomerge("run", file, "--out", out)
    assert code == 0, error
    found = means(out, "search")
    assert len(found) == 8
    base, expert = found[0], found[1]
    assert base["drift", "kl"] == 0.0 < expert["drift", "kl"]
    assert all(0 < each["write", "tokens"] <= 10 for each in found.values())
    assert all(each["length", "acc"] == 7.0 for each in found.values())
    assert base["text", "loss"] != expert["text", "loss"]
    assert {*means(out, "confirm")[0]} == {*base}

    code, _, error = evomerge("run", file, "--out", out, "--set", "budget.evaluations=12")
    assert (code, len(means(out, "search"))) == (0, 12), error
    (folder / "mine.py").write_text(SCORER + "# changed\n")
    code, _, error = evomerge("run", file, "--out", out, "--set", "budget.evaluations=16")
    assert code == 2
    assert "workers.tasks.length.digest: the run has" in error


def test_a_function_that_fails_is_named(evomerge: Run, folder: Path) -> None:
    file = write(folder, experiment([{"name": "voice", "task": "voice"}], scorers={"voice": own("mine:broken")}))
    code, _, error = evomerge("run", file, "--out", folder / "run")
    assert code == 3
    assert "stage evaluate: scorer 'voice' (mine:broken): LookupError: no such voice" in error


@pytest.mark.parametrize(
    ("scorers", "objective", "message"),
    [
        ({"one": own("nothing_here:f")}, {}, "$.fitness.scorers.one.function"),
        ({"one": own(items="none.jsonl")}, {}, "$.fitness.scorers.one.items"),
        (
            {"one": {"kind": "loss", "text": "none.txt"}},
            {"metric": "loss", "goal": "min"},
            "$.fitness.scorers.one.text",
        ),
        ({"one": own("mine.py")}, {}, "$.fitness.scorers.one.function"),
        ({"one": own(itms=3)}, {}, "did you mean 'items'?"),
        ({"one": own() | {"kind": "functoin"}}, {}, "did you mean 'function'?"),
        ({"one": own(metrics=["length"])}, {"metric": "lenght"}, "did you mean 'length'?"),
        ({"one": own()}, {"few_shot": 2}, "leave out filter and few_shot"),
        ({"one": {"kind": "loss", "text": "text.txt"}}, {"metric": "loss"}, "set goal: min"),
        (
            {"one": {"kind": "kl", "text": "text.txt", "reference": "ciph"}},
            {"metric": "kl", "goal": "min"},
            "reference: expected one of base, rev, sort; got 'ciph'",
        ),
    ],
)
def test_faults_before_anything_is_spent(
    evomerge: Run, folder: Path, scorers: dict[str, Any], objective: dict[str, Any], message: str
) -> None:
    file = write(folder, experiment([{"name": "o", "task": "one", **objective}], scorers=scorers))
    code, _, error = evomerge("check", file)
    assert (code, message in error) == (2, True), error


def test_a_scorer_beside_the_fitness_file_may_move_with_it(evomerge: Run, folder: Path) -> None:
    data = experiment([{"name": "length", "task": "length"}], scorers={"length": own()})
    (folder / "parts").mkdir()
    for name in ("mine.py", "rev.jsonl"):
        shutil.move(folder / name, folder / "parts" / name)
    (folder / "parts" / "fit.yaml").write_text(yaml.safe_dump(data["fitness"]))
    file = write(folder, data | {"fitness": "parts/fit.yaml"})
    out = folder / "run"
    assert evomerge("run", file, "--out", out)[0] == 0
    shutil.move(folder / "parts", folder / "elsewhere")
    write(folder, data | {"fitness": "elsewhere/fit.yaml"})
    code, _, error = evomerge("run", file, "--out", out, "--set", "budget.evaluations=12")
    assert code == 0, error


def test_a_public_test_split_is_warned_of(evomerge: Run, folder: Path) -> None:
    public = {**WRITE, "task": "public", "dataset_path": "openai/gsm8k", "doc_to_text": "!function mine.text"}
    text = yaml.safe_dump({k: v for k, v in public.items() if k != "dataset_kwargs"})
    (folder / "common.yaml").write_text(text.replace("'!function mine.text'", "!function mine.text"))
    (folder / "public.yaml").write_text("include: common.yaml\ntask: public\n")
    file = write(folder, experiment([{"name": "o", "task": "public"}], tasks=["public.yaml"]))
    for command in ("check", "plan"):
        code, _, error = evomerge(command, file)
        assert code == 0
        assert "warning: task 'public' scores the split test of openai/gsm8k" in error
    (folder / "public.yaml").write_text("include: common.yaml\ntask: public\ntest_split: train\n")
    assert "warning" not in evomerge("check", file)[2]


def test_a_text_that_calibrates_and_scores_is_warned_of(evomerge: Run, folder: Path) -> None:
    objectives = [{"name": "loss", "task": "text", "metric": "loss", "goal": "min"}, {"name": "w", "task": "write"}]
    objectives[1]["metric"] = "exact_match"
    data = experiment(
        objectives, tasks=["write.yaml"], scorers={"text": {"kind": "loss", "text": "text.txt", "block": 8}}
    )
    data["pool"]["calibration"] = {"text": {"base": "text.txt", "rev": "rev.jsonl"}}
    file = write(folder, data)
    error = evomerge("check", file)[2]
    assert "text.txt is the calibration text and scores the task 'text'" in error
    assert "rev.jsonl is the calibration text and scores the task 'write'" in error


def test_a_run_keeps_its_warnings(evomerge: Run, folder: Path) -> None:
    data = experiment(
        [{"name": "loss", "task": "text", "metric": "loss", "goal": "min"}],
        scorers={"text": {"kind": "loss", "text": "text.txt", "block": 8}},
    )
    data["pool"]["calibration"] = {"text": {"base": "text.txt"}}
    code, output, error = evomerge("run", write(folder, data), "--out", folder / "run")
    assert code == 0, error
    assert output.count("scores the task 'text'") == 2  # at the start, and beside the verdict
    assert "scores the task &#39;text&#39;" in (folder / "run" / "report.html").read_text()
