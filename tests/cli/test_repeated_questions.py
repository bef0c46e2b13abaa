"""Questions that stand in a file twice: no candidate is confirmed on one that the search has seen."""

from __future__ import annotations

import json
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
DIFFERENT = 60
PAIR = ("--base", str(MODELS / "base"), "--expert", f"rev={MODELS / 'rev'}")


def task(name: str, output: str, metric: str, **more: Any) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "twice.jsonl"}},
        "test_split": "test",
        "output_type": output,
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        **more,
    }


TASKS = [
    task("exact", "loglikelihood", "acc"),
    task("choice", "multiple_choice", "acc", doc_to_choice=["abc", "cba"], doc_to_target=0),
    task("write", "generate_until", "exact_match", generation_kwargs={"until": ["."], "max_gen_toks": 4}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tasks over the same questions twice, on lines that differ in a number that nobody is asked."""
    lines = [json.loads(line) for line in REV.read_text().splitlines()[:DIFFERENT]] * 2
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(q | {"id": i}) + "\n" for i, q in enumerate(lines)))
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(q) + "\n" for q in lines))
    (tmp_path / "voice.py").write_text("def length(engine, items):\n    return [len(i['answer']) for i in items]\n")
    for each in TASKS:
        (tmp_path / f"{each['task']}.yaml").write_text(yaml.safe_dump(each))
    objectives = [{"name": t["task"], "task": t["task"]} for t in TASKS] + [{"name": "words", "task": "words"}]
    objectives[2]["metric"] = "exact_match"
    experiment = {
        "version": 1,
        "name": "twice",
        "pool": {"base": str(MODELS / "base"), "experts": {n: str(MODELS / n) for n in ("rev", "sort")}},
        "space": "task_arithmetic",
        "fitness": {
            "tasks": [f"{t['task']}.yaml" for t in TASKS],
            "scorers": {"words": {"kind": "function", "function": "voice:length", "items": "words.jsonl"}},
            "objectives": objectives,
            "items": {"search": 20, "confirm": 40},
        },
        "algorithm": {"kind": "random", "population": 4},
        "budget": {"evaluations": 8},
        "engine": {"device": "cpu"},
        "executor": {"kind": "serial"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment))
    return tmp_path


def asked(run: Path, phase: Any) -> dict[str, set[int]]:
    """Numbers of the questions that were asked, by task; of two equal lines, the second has the first's number."""
    with RunStore.read(run) as store:
        return {
            record.task: {item % DIFFERENT for item in record.items}
            for responses in store.responses(phase).values()
            for record in responses
        }


def test_a_question_that_stands_there_twice_is_on_one_side_only(evomerge: Run, folder: Path) -> None:
    out = folder / "run"
    code, told, error = evomerge("run", folder / "mine.yaml", "--out", out)
    assert code == 0, error
    assert "task 'write': 60 of 120 items ask what an earlier one asks; left out" in " ".join(told.split())
    searched, confirmed = asked(out, "search"), asked(out, "confirm")
    assert searched.keys() == confirmed.keys() == {"exact", "choice", "write", "words"}
    for name, seen in searched.items():
        assert len(seen) == 20
        assert len(confirmed[name]) == 40
        assert not seen & confirmed[name]
    assert evomerge("replay", out)[0] == 0
    code, _, error = evomerge("run", folder / "mine.yaml", "--out", out, "--set", "budget.evaluations=12")
    assert code == 0, error


def test_only_different_questions_count(evomerge: Run, folder: Path) -> None:
    code, _, error = evomerge("check", folder / "mine.yaml", "--set", "fitness.items.search=21")
    assert code == 2
    assert "task 'words' has 120 items, 60 different: expected at least 61 in each" in error
    out = folder / "run"  # lines of the tasks differ, so only the run knows that their questions do not
    more = ("--set", "fitness.items.search=21", "--set", "fitness.items.confirm=40")
    changed = yaml.safe_load((folder / "mine.yaml").read_text())
    changed["fitness"]["objectives"].pop()
    (folder / "less.yaml").write_text(yaml.safe_dump(changed))
    assert evomerge("check", folder / "less.yaml", *more)[0] == 0
    code, _, error = evomerge("run", folder / "less.yaml", "--out", out, *more)
    assert code == 2
    assert "task 'exact' has 120 items, 60 different" in error


def test_a_starter_counts_different_questions(evomerge: Run, folder: Path) -> None:
    file = folder / "begun.yaml"
    assert evomerge("init", file, *PAIR, "--questions", folder / "twice.jsonl")[0] == 0
    items = yaml.safe_load(file.read_text())["fitness"]["items"]
    assert items["search"] + items["confirm"] == DIFFERENT
    assert evomerge("check", file)[0] == 0
