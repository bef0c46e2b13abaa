"""evomerge from Python, on the quickstart's models."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evomerge
from evomerge.config import shipped_folder
from evomerge.errors import ConfigError, StoreError
from evomerge.search import Progress

SMALL = [
    "executor={kind: serial}",
    "fitness.items={search: 8, confirm: 24}",
    "algorithm={kind: nsga2, population: 4}",
    "budget.evaluations=13",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> evomerge.Run:
    return evomerge.run("quickstart", tmp_path_factory.mktemp("api") / "run", SMALL)


def test_a_run_ends_with_a_confirmed_front(finished: evomerge.Run) -> None:
    assert finished.finished
    assert finished.verdict.kind in ("better", "partial", "same", "worse")
    confirmed = {entry.id for entry in finished.summary.entries.values() if entry.confirmed is not None}
    assert finished.front
    assert {entry.id for entry in finished.front} <= confirmed


def test_candidates_go_by_name_or_number(finished: evomerge.Run) -> None:
    knee = finished.candidate()
    assert finished.candidate(knee.id) == finished.candidate(str(knee.id)) == knee
    assert finished.candidate("best:rev") in finished.front
    assert [finished.candidate(name).id for name in ("base", "uniform")] == [0, 4]
    with pytest.raises(StoreError, match=r"expected a candidate, one of knee, best:rev, .*base, rev, .*uniform"):
        finished.candidate("best:nothing")


def test_a_run_is_shown_in_one_line(finished: evomerge.Run) -> None:
    front = f"{len(finished.front)} on the confirmed front"
    assert repr(finished) == f"<Run {finished.folder}: finished, {len(finished.summary.entries)} candidates, {front}>"
    assert len(repr(finished.summary)) < 5_000
    assert "Field(" not in repr(finished.candidate())


def test_a_folder_without_a_run_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got a folder without a run"):
        evomerge.run(tmp_path)
    with pytest.raises(ConfigError, match="a folder, and no shipped name"):
        evomerge.run(tmp_path, tmp_path / "run")


def test_the_table_has_a_row_for_each_scored_candidate(finished: evomerge.Run) -> None:
    rows = finished.table()
    scored = [e for e in finished.summary.entries.values() if e.confirmed or e.estimated]
    assert [row["candidate"] for row in rows] == [entry.id for entry in scored]
    anchors = [row for row in rows if row["kind"] == "anchor"]
    assert [row["name"] for row in anchors] == ["base", "rev", "sort", "ciph", "uniform"]
    assert {row["status"] for row in anchors} == {"confirmed"}
    for row in rows:
        assert row["mean"] == pytest.approx(sum(row[name] for name in ("rev", "sort", "ciph", "rc")) / 4)


def test_opening_shows_what_running_gave(finished: evomerge.Run) -> None:
    assert evomerge.open_run(str(finished.folder)) == finished


def test_report_and_export_are_those_of_the_command_line(finished: evomerge.Run, tmp_path: Path) -> None:
    assert finished.report(tmp_path / "page.html").stat().st_size > 10_000
    assert (finished.export("knee", tmp_path / "knee") / "model.safetensors").exists()
    assert finished.report() == finished.folder / "report.html"


def test_running_again_goes_on_and_tells_each_step(finished: evomerge.Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    steps: list[Progress] = []
    again = evomerge.run(folder, changes=["budget.evaluations=17"], watch=steps.append)
    assert {step.generation for step in steps if step.phase == "search"} == {2}
    assert again.summary.cost.evaluations == 17
    assert steps[-1].done == steps[-1].planned


def test_whoever_watches_may_interrupt(finished: evomerge.Run, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 7:
            raise KeyboardInterrupt

    experiment = evomerge.load_experiment("quickstart", SMALL)
    with pytest.raises(KeyboardInterrupt):
        evomerge.run(experiment, tmp_path / "run", watch=interrupt)
    stopped = evomerge.open_run(tmp_path / "run")
    assert not stopped.finished
    assert len(stopped.table()) == 7
    assert stopped.verdict.kind == "unconfirmed"
    gone_on = evomerge.run(tmp_path / "run")
    assert gone_on.table() == finished.table()


def test_an_experiment_takes_changes(tmp_path: Path) -> None:
    experiment = evomerge.load_experiment("quickstart", SMALL)
    with pytest.raises(ConfigError, match=r"budget\.evaluations"):
        evomerge.run(experiment, tmp_path / "run", ["budget.evaluations=3"])
    assert not (tmp_path / "run").exists()


def test_the_folder_is_named_after_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shipped_folder("experiments") / "quickstart" / "models", tmp_path / "models")
    pool = {name: str(tmp_path / "models" / name) for name in ("base", "rev")}
    changes = [f"pool={{base: {pool['base']}, experts: {{rev: {pool['rev']}}}}}", "name=mine", *SMALL]
    assert evomerge.run("quickstart", changes=changes).folder == Path("runs/mine")


def test_names_are_loaded_when_they_are_asked_for() -> None:
    code = (
        "import sys, evomerge; before = 'numpy' in sys.modules; evomerge.run; "
        "print(before, 'torch' in sys.modules, sorted(set(evomerge.__all__) - set(dir(evomerge))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=2) == ["False", "False", "[]\n"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        evomerge.nothing  # noqa: B018
