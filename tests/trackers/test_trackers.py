"""Trackers on a real run: TensorBoard as it is, the others as a record of the calls that are made."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from evomerge.config import Experiment
from evomerge.errors import MissingExtraError
from evomerge.reports import Standing, Tally, summarize
from evomerge.runs import RunStore, experiment_of
from evomerge.trackers import points_of, require_trackers, tracking

SMALL = [
    "--executor", "serial",
    "--set", "algorithm={kind: nsga2, population: 4}",
    "--set", "fitness.items={search: 16, confirm: 16}",
    "--set", "fitness.confirm.shortlist=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that TensorBoard was told of, and that went on with a larger budget."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    for budget in (9, 13):
        command = [sys.executable, "-m", "evomerge", "run", "quickstart", "--out", str(folder), *SMALL]
        command += ["--track", "tensorboard", "--set", f"budget.evaluations={budget}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tracker" not in done.stdout
    return folder


@pytest.fixture
def standing(folder: Path) -> Standing:
    with RunStore.read(folder) as store:
        return Tally(experiment_of(store)).look(store)


@pytest.fixture
def told(folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Tells trackers of the finished run, from a folder of their own; what was noted on the way."""
    own = tmp_path / "run"
    own.mkdir()
    (own / "run.db").symlink_to(folder / "run.db")
    with RunStore.read(folder) as store:
        experiment = experiment_of(store)

    def tell(*names: str) -> list[str]:
        notes: list[str] = []
        named: Experiment = experiment.model_copy(update={"trackers": names})
        with tracking(named, own, notes.append) as track:
            track()
        return notes

    return tell


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_every_candidate_once(folder: Path, standing: Standing) -> None:
    found = scalars(folder / "trackers" / "tensorboard")
    merged = {seq + 1: standing.scores[c] for c, seq in standing.fresh.items() if c not in standing.anchors}
    assert dict(found["score/mean"]) == pytest.approx({step: scores.mean.mean for step, scores in merged.items()})
    assert len(found["score/mean"]) == len(merged) == 8
    for name, points in found.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), name
    for index, objective in enumerate(standing.objectives):
        assert found[f"score/{objective.name}"][-1][1] == pytest.approx(
            merged[found["score/mean"][-1][0]].each[index].mean
        )


def test_tensorboard_ends_with_what_was_confirmed(folder: Path) -> None:
    with RunStore.read(folder) as store:
        summary = summarize(store)
    confirmed = summary.entries[summary.picks["knee"]].confirmed
    assert confirmed is not None
    found = scalars(folder / "trackers" / "tensorboard")["confirmed/knee/mean"]
    assert [value for _, value in found][-1] == pytest.approx(confirmed.mean.mean)


def test_totals_stand_at_the_last_step(standing: Standing) -> None:
    points = [*points_of(standing, 0)]
    step, values = points[-1]
    assert step == max(standing.fresh.values()) + 1
    assert values["front/members"] == len(standing.front)
    assert values["run/items"] == standing.items
    assert values["front/hypervolume"] > 0
    assert [*points_of(standing, step)] == []


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(name: str, **contents: Any) -> None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    return install


def opening(inits: list[dict[str, Any]], run: Any) -> Callable[..., Any]:
    """The `init` of a library, which keeps what it was told."""

    def init(**kwargs: Any) -> Any:
        inits.append(kwargs)
        return run

    return init


class Recorder:
    """Takes any call; `calls` tells which."""

    def __init__(self, **attributes: Any) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return self

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def test_wandb_goes_on_with_its_run_and_doubles_nothing(library: Any, told: Any, tmp_path: Path) -> None:
    run = Recorder(id="abc")
    inits: list[dict[str, Any]] = []
    library("wandb", init=opening(inits, run), Settings=lambda **kwargs: kwargs)
    assert told("wandb") == []
    steps = [kwargs["step"] for _, kwargs in run.named("log")]
    assert steps == sorted(set(steps))
    assert len(run.named("finish")) == 1
    assert told("wandb") == []
    scored = [kwargs["step"] for args, kwargs in run.named("log") if "score/mean" in args[0]]
    assert len(scored) == len(set(scored)) == 8
    assert [init["id"] for init in inits] == [None, "abc"]
    assert inits[0]["config"]["trackers"] == ["wandb"]
    assert inits[0]["project"] == "evomerge"


def test_trackio_goes_on_with_its_run(library: Any, told: Any) -> None:
    run = Recorder(name="quick-fox")
    inits: list[dict[str, Any]] = []
    library("trackio", init=opening(inits, run))
    assert told("trackio") == told("trackio") == []
    assert [(init["name"], init["resume"]) for init in inits] == [(None, "never"), ("quick-fox", "allow")]
    assert len(run.named("log")) == len({kwargs["step"] for _, kwargs in run.named("log")})
    assert len(run.named("finish")) == 2


def test_mlflow_goes_on_with_its_run(library: Any, told: Any) -> None:
    client = Recorder(info=SimpleNamespace(run_id="r1"), experiment_id="7")
    library("mlflow", MlflowClient=lambda: client)
    assert told("mlflow") == told("mlflow") == []
    assert len(client.named("create_run")) == 1
    assert {args[0] for args, _ in client.named("log_metric")} == {"r1"}
    places = [(args[1], kwargs["step"]) for args, kwargs in client.named("log_metric")]
    assert len(places) == len(set(places)) > 8


def test_one_that_fails_is_left_behind_and_the_others_go_on(library: Any, told: Any) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no route to\nthe service")

    run = Recorder(name="quick-fox")
    library("wandb", init=refuse, Settings=lambda **kwargs: kwargs)
    library("trackio", init=lambda **_: run)
    (note,) = told("wandb", "trackio")
    assert "the tracker wandb failed, and the run goes on without it (ConnectionError: no route to the service)" in note
    assert run.named("log")


def test_one_that_hangs_is_not_waited_for(library: Any, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.trackers.feed._PATIENCE", 0.1)
    hanging = threading.Event()
    library("trackio", init=lambda **_: hanging.wait(60))
    (note,) = told("trackio")
    assert "the tracker trackio did not end" in note
    hanging.set()


def test_secrets_are_not_told(library: Any, told: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("MY_API_KEY", "quickstart")
    inits: list[dict[str, Any]] = []
    library("trackio", init=opening(inits, Recorder(name="x")))
    told("trackio")
    assert "quickstart" not in json.dumps(inits[0]["config"])


def test_a_library_that_is_not_there_is_refused_before_the_run() -> None:
    with pytest.raises(MissingExtraError, match=r"evomerge\[neptune\]"):
        require_trackers(["neptune"])
    require_trackers(["tensorboard"])


def test_nothing_is_imported_unless_asked() -> None:
    code = (
        "import sys, evomerge.launch, evomerge.trackers\n"
        "print({'tensorboard', 'wandb', 'mlflow', 'trackio', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
