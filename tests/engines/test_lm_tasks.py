from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from evomerge.config import FitnessConfig
from evomerge.engines.lm_tasks import load_tasks
from evomerge.engines.task_files import find_task_files
from evomerge.errors import TaskError

FitnessMaker = Callable[..., FitnessConfig]


@pytest.fixture
def own(tasks: Path, tmp_path: Path) -> Path:
    """A copy of the small tasks that a test may spoil."""
    return copytree(tasks, tmp_path / "own")


def change(folder: Path, task: str, **changes: Any) -> None:
    file = folder / f"{task}.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


def fault(make_fitness: FitnessMaker, *objectives: dict[str, Any], **more: Any) -> str:
    with pytest.raises(TaskError) as caught:
        load_tasks(make_fitness(*objectives, **more), seed=0)
    return str(caught.value)


def test_tasks_come_sorted_with_their_sizes_and_filters(make_fitness: FitnessMaker) -> None:
    fitness = make_fitness(
        {"task": "rev_write", "metric": "exact_match", "filter": "whole"},
        {"task": "rev_choice", "metric": "acc_norm"},
        {"task": "rev_choice"},
    )
    first, second = load_tasks(fitness, seed=0)
    assert (first.name, first.size, dict(first.filters)) == ("rev_choice", 40, {"acc": "none", "acc_norm": "none"})
    assert (second.name, dict(second.filters)) == ("rev_write", {"exact_match": "whole"})


def test_data_files_stand_beside_the_task_file(
    make_fitness: FitnessMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (task,) = load_tasks(make_fitness({"task": "rev_exact"}), seed=0)
    assert task.size == 40


def test_a_single_file_is_enough(make_fitness: FitnessMaker, tasks: Path) -> None:
    (task,) = load_tasks(make_fitness({"task": "sort_exact"}, tasks=(tasks / "sort_exact.yaml",)), seed=0)
    assert task.name == "sort_exact"


def test_all_items_get_the_same_worked_examples(make_fitness: FitnessMaker) -> None:
    prompts = []
    for seed in (0, 0, 1):
        (task,) = load_tasks(make_fitness({"task": "rev_shots", "few_shot": 3}), seed=seed)
        docs = list(task.task.eval_docs)
        examples = [task.task.fewshot_context(doc, 3).removesuffix(doc["prompt"]) for doc in (docs[7], docs[2])]
        assert examples[0] == examples[1]
        assert examples[0].count("=") == 3
        prompts.append(examples[0])
    assert prompts[0] == prompts[1] != prompts[2]


def test_every_fault_of_every_objective_comes_at_once(make_fitness: FitnessMaker) -> None:
    message = fault(
        make_fitness,
        {"task": "rev_exakt"},
        {"task": "both"},
        {"task": "rev_choice", "metric": "acc_nrm"},
        {"task": "rev_choice", "metric": "f1"},
        {"task": "rev_write", "metric": "exact_match"},
        {"task": "sort_exact", "few_shot": 1},
    )
    assert message.startswith("fitness: 6 faults\n")
    assert "task 'rev_exakt': unknown; did you mean 'rev_exact'?" in message
    assert "task 'both': expected one task; got a group" in message
    assert "objective 'o2': task 'rev_choice' has no metric 'acc_nrm'; did you mean 'acc_norm'?" in message
    assert "objective 'o3': task 'rev_choice' has no metric 'f1'; usable metrics: ['acc', 'acc_norm']" in message
    assert "objective 'o4': task 'rev_write' has several filters; set filter to one of ['letters', 'whole']" in message
    assert "expected worked examples from a split that is not scored; got 'test'" in message


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (
            [{"task": "rev_write", "metric": "exact_match", "filter": "hole"}],
            "has no filter 'hole'; did you mean 'whole'?",
        ),
        (
            [{"task": "rev_shots", "few_shot": 1}, {"task": "rev_shots"}],
            "one task has one number of worked examples; its objectives ask for few_shot [0, 1]",
        ),
        (
            [{"task": "rev_write", "metric": "exact_match", "filter": f} for f in ("letters", "whole")],
            "metric 'exact_match' is read through one filter",
        ),
        ([{"task": "rev_shots", "few_shot": 13}], "expected at least 13 worked examples; got 12"),
    ],
)
def test_objectives_that_do_not_fit(
    make_fitness: FitnessMaker, objectives: list[dict[str, Any]], expected: str
) -> None:
    assert expected in fault(make_fitness, *objectives)


def test_only_means_over_items_can_be_optimized(make_fitness: FitnessMaker, own: Path) -> None:
    change(
        own, "rev_exact", metric_list=[{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    )
    message = fault(make_fitness, {"task": "rev_exact", "metric": "perplexity"}, tasks=(own,))
    assert "metric 'perplexity' is not a mean over items" in message


def test_paths_without_tasks(make_fitness: FitnessMaker, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = fault(make_fitness, {"task": "x"}, tasks=(tmp_path / "empty", tmp_path / "gone"))
    assert "got a folder without any" in message
    assert "got nothing" in message


def test_a_broken_file_is_named(make_fitness: FitnessMaker, own: Path) -> None:
    (own / "bad.yaml").write_text("task: [")
    assert f"{own / 'bad.yaml'}: expected an lm-eval task file; got" in fault(
        make_fitness, {"task": "rev_exact"}, tasks=(own,)
    )


def test_a_name_defined_twice(make_fitness: FitnessMaker, own: Path) -> None:
    (own / "twin.yaml").write_text((own / "rev_exact.yaml").read_text())
    assert "task 'rev_exact': defined twice" in fault(make_fitness, {"task": "sort_exact"}, tasks=(own,))


@pytest.mark.parametrize(("content", "got"), [(None, "nothing"), ("", "an empty file")])
def test_items_that_are_not_there(make_fitness: FitnessMaker, own: Path, content: str | None, got: str) -> None:
    (own / "rev.jsonl").unlink()
    if content is not None:
        (own / "rev.jsonl").write_text(content)
    message = fault(make_fitness, {"task": "rev_exact"}, tasks=(own,))
    assert f"expected items in {own / 'rev.jsonl'}; got {got}" in message


def test_what_lm_eval_cannot_build_is_told(make_fitness: FitnessMaker, own: Path) -> None:
    change(own, "rev_exact", doc_to_text="{{question}}", output_type="loglikelyhood")
    assert "lm-eval cannot build it: ValueError" in fault(make_fitness, {"task": "rev_exact"}, tasks=(own,))


def test_tasks_that_run_code_are_refused(make_fitness: FitnessMaker, own: Path) -> None:
    change(own, "rev_exact", unsafe_code=True)
    assert "it runs code that the model wrote" in fault(make_fitness, {"task": "rev_exact"}, tasks=(own,))


def test_stock_tasks_are_found_without_an_index(tasks: Path) -> None:
    file = find_task_files([tasks]).file_of("arc_easy")
    assert yaml.safe_load(file.read_text())["task"] == "arc_easy"


def test_the_users_task_comes_before_the_stock_one(tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "arc_easy.yaml").write_text((tasks / "rev_exact.yaml").read_text().replace("rev_exact", "arc_easy"))
    assert find_task_files([tmp_path]).file_of("arc_easy") == tmp_path / "arc_easy.yaml"
