"""`evomerge bank`: from runs, matrices and logs to a bank that a search takes; and every kind of broken matrix."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evomerge.banks import fit_banks
from evomerge.config import load_experiment, shipped_folder
from evomerge.fitness.irt import load_bank
from evomerge.launch import launch
from evomerge.runs import RunStore
from evomerge.stopping import Stop

SMALL = [
    "executor={kind: serial}",
    "algorithm={kind: random, population: 4}",
    "budget.evaluations=9",
    "fitness.items={search: 8, confirm: 16}",
    "fitness.confirm.shortlist=1",
]
TASK = "quickstart_rev"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small quickstart run."""
    folder = tmp_path_factory.mktemp("bank") / "run"
    for _ in launch(load_experiment("quickstart", SMALL), folder, Stop()):
        pass
    return folder


def lines_of_task() -> list[dict[str, str]]:
    file = shipped_folder("fitness") / "tasks" / "quickstart" / "rev.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def matrix(models: int = 40, items: int = 60) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rng = np.random.default_rng(0)
    chance = 1 / (1 + np.exp(rng.normal(size=items) - rng.normal(size=(models, 1))))
    return (rng.random((models, items)) < chance).astype(float)


def write_csv(path: Path, header: list[object], rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_logs(folder: Path, models: int = 3, prompt: str = "{}") -> Path:
    questions = lines_of_task()
    for model in range(models):
        place = folder / f"model{model}"
        place.mkdir(parents=True)
        samples = [
            {
                "doc_id": item,
                "filter": "none",
                "metrics": ["acc"],
                "prompt_hash": hashlib.sha256(prompt.format(questions[item]["prompt"]).encode()).hexdigest(),
                "acc": float((item + model) % 3 == 0),
            }
            for item in range(30)
        ]
        text = "\n".join(map(json.dumps, samples))
        (place / f"samples_{TASK}_2026-01-01T00-00-00.jsonl").write_text(text, encoding="utf-8")
        (place / f"samples_{TASK}_other_2026-01-01T00-00-00.jsonl").write_text("not a log", encoding="utf-8")
    return folder


def imported(evomerge: Run, source: Path, out: Path, *more: str) -> tuple[int, str, str]:
    return evomerge("bank", "import", source, "--task", TASK, "--experiment", "quickstart", "--out", out, *more)


def test_a_run_gives_banks_that_the_next_run_takes(run: Path, evomerge: Run, tmp_path: Path) -> None:
    code, out, _ = evomerge("bank", "fit", run, "--out", tmp_path / "banks")
    assert code == 0
    assert out.count("wrote ") == 4
    path = tmp_path / "banks" / f"{TASK}.acc.npz"
    code, out, _ = evomerge("bank", "show", path)
    assert code == 0
    for word in (TASK, "calibrators", "Rasch", "logistic link", "difficulty", "solved by nobody", "information"):
        assert word in out
    code, every, _ = evomerge("bank", "show", tmp_path / "banks")
    assert code == 0
    assert out in every
    assert every.count("calibrators") == 4
    code, _, err = evomerge("bank", "fit", run, "--out", tmp_path / "one.npz")
    assert (code, "--task" in err) == (2, True)
    code, _, err = evomerge("bank", "fit", run, "--out", tmp_path / "banks")
    assert (code, "free name" in err) == (2, True)
    estimator = f"fitness.estimator={{kind: irt, universe: 12, banks: [{path}]}}"
    changes = [part for change in (*SMALL, estimator) for part in ("--set", change)]
    assert evomerge("run", "quickstart", "--out", tmp_path / "next", *changes)[0] == 0
    code, out, _ = evomerge("status", tmp_path / "next")
    assert (code, "audit" in out) == (0, True)
    with RunStore.read(tmp_path / "next") as store:
        assert {len(r.items) for x in store.results("search") for r in x.responses if x.candidate == 0} == {8, 12}


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_a_matrix_becomes_a_bank_of_the_experiments_task(kind: str, run: Path, evomerge: Run, tmp_path: Path) -> None:
    rows = matrix()
    rows[0, :5] = np.nan
    ids = [2 * item for item in range(60)][::-1]
    if kind == "csv":
        cells = [[f"m{i}", *("" if np.isnan(v) else v for v in row)] for i, row in enumerate(rows)]
        source = write_csv(tmp_path / "m.csv", ["model", *ids], cells)
    else:
        source = tmp_path / "m.npz"
        np.savez(source, responses=rows, items=np.array(ids))
    code, out, err = imported(evomerge, source, tmp_path / "bank.npz")
    assert code == 0, err
    assert "40 models x 60 items" in out
    assert "not verified for 60 items" in err
    bank = load_bank(tmp_path / "bank.npz")
    assert bank.items == tuple(sorted(ids))
    assert bank.responses is not None
    assert np.array_equal(bank.responses, rows[:, ::-1], equal_nan=True)
    assert fit_banks([run], TASK)[0].digest == bank.digest


def test_logs_are_compared_by_their_prompts(evomerge: Run, tmp_path: Path) -> None:
    code, out, err = imported(evomerge, write_logs(tmp_path / "same"), tmp_path / "bank.npz", "--no-responses")
    assert code == 0, err
    assert "3 models x 30 items" in out
    assert "30 of 30 items carry a hash" in err
    assert load_bank(tmp_path / "bank.npz").responses is None
    other = write_logs(tmp_path / "other", prompt="Question: {}")
    code, _, err = imported(evomerge, other, tmp_path / "other.npz")
    assert (code, "30 of 30 items" in err) == (2, True)
    assert not (tmp_path / "other.npz").exists()


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["model", 0, 1], [["a", 1]], "2 cells in row 1"),
        (["model", 0, 1], [["a", 1, "yes"]], "could not convert"),
        (["model", "x", 1], [["a", 1, 0]], "invalid literal"),
        ([0, 0], [[1, 0]], "stands there twice"),
        ([0, 9999], [[1, 0]], "got [9999]"),
        ([0, 1], [], "expected a response matrix"),
        ([0, 1], [["", ""]], "at least one model that answered"),
    ],
)
def test_broken_matrices_are_refused_in_one_line(
    header: list[object], rows: list[list[object]], message: str, evomerge: Run, tmp_path: Path
) -> None:
    code, _, err = imported(evomerge, write_csv(tmp_path / "m.csv", header, rows), tmp_path / "bank.npz")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1 or "note:" in err


def test_what_is_not_there_or_no_bank_is_refused(evomerge: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no bank", encoding="utf-8")
    np.savez(tmp_path / "m.npz", responses=np.ones((2, 2)), items=np.arange(2))
    for source, message in ((tmp_path / "no.csv", "no such file"), (tmp_path / "empty", "--log_samples")):
        code, _, err = imported(evomerge, source, tmp_path / "bank.npz")
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
    for file in (tmp_path / "text.npz", tmp_path / "m.npz", tmp_path / "none.npz", tmp_path / "empty"):
        code, _, err = evomerge("bank", "show", file)
        assert (code, "expected an item bank" in err, err.count("\n")) == (2, True, 1), err
    shared = ["bank", "import", tmp_path / "m.npz", "--experiment", "quickstart", "--out", tmp_path / "b.npz"]
    code, _, err = evomerge(*shared, "--task", "quickstart_rve")
    assert (code, "did you mean" in err) == (2, True), err
    code, _, err = evomerge(*shared, "--task", TASK, "--metric", "f1")
    assert (code, "expected a metric" in err) == (2, True), err
    code, _, err = evomerge("run", "quickstart", "--set", "fitness.estimator={kind: irt, banks: [no.npz]}")
    assert (code, "expected an item bank; nothing at" in err) == (2, True), err


def test_plan_counts_what_a_search_with_few_items_may_take(evomerge: Run) -> None:
    reduced = ["--set", "fitness.estimator={kind: irt, universe: 200, promote: 2}"]
    algorithm = ["--set", "algorithm={kind: nsga2, population: 20}"]
    code, out, _ = evomerge("plan", "quickstart", *algorithm, *reduced)
    assert code == 0
    most = 4 * (5 * 200 + 12 * (20 * 96 + 2 * (200 - 96)))
    assert f"at most {most:,}" in " ".join(out.split())
    assert "94,080 (96 for each of 4 tasks)" in " ".join(evomerge("plan", "quickstart", *algorithm)[1].split())
