"""A run that searches omega, through the true code path: it ends, resumes, replays, exports, and protects its text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evomerge.config import load_experiment
from evomerge.errors import ConfigError, StoreError
from evomerge.launch import launch
from evomerge.publish import export
from evomerge.replay import rescore
from evomerge.runs import RunStore
from evomerge.stopping import Stop

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "experiments" / "quickstart" / "models"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("omega")


@pytest.fixture(scope="module", autouse=True)
def _private_cache(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(folder / "cache"))
        yield


def experiment_file(folder: Path, **pool: object) -> str:
    """A small experiment; written where its text lies."""
    experiment = {
        "version": 1,
        "name": "omega",
        "pool": {"base": str(MODELS / "base"), "experts": {"rev": str(MODELS / "rev")}, **pool},
        "space": {
            "kind": "parameter",
            "operator": {"name": "task_arithmetic"},
            "knots": 1,
            "genes": {"weight": {"edges": "first"}, "omega": {"edges": "first"}},
        },
        "fitness": {
            "tasks": [str(ROOT / "fitness" / "tasks" / "quickstart")],
            "objectives": [{"name": "rev", "task": "quickstart_rev"}],
            "items": {"search": 8, "confirm": 8},
        },
        "algorithm": {"kind": "random", "population": 4},
        "budget": {"evaluations": 8},
        "engine": {"device": "cpu", "dtype": "float32", "batch_size": 64},
    }
    file = folder / "omega.yaml"
    file.write_text(yaml.safe_dump(experiment))
    return str(file)


def run(name: str, folder: Path, evaluations: int = 8) -> None:
    for _ in launch(load_experiment(name, [f"budget.evaluations={evaluations}"]), folder / "run", Stop()):
        pass


def test_omega_is_searched_from_start_to_end(folder: Path) -> None:
    (folder / "text.txt").write_text("abc def ghij cab bed fig jag " * 40)
    name = experiment_file(folder, calibration={"text": "text.txt", "tokens": 256})
    run(name, folder)
    run(name, folder, 12)
    with RunStore.read(folder / "run") as store:
        recipes = [candidate.recipe for candidate in store.candidates() if candidate.kind == "search"]
        number = next(candidate.id for candidate in store.candidates() if candidate.kind == "search")
    omegas = [recipe.parameter("omega").at("mlp", 0)[0] for recipe in recipes]
    assert len(set(omegas)) == 8
    assert all(0.2 <= omega <= 1 for omega in omegas)
    assert not rescore(folder / "run", str(number)).differing
    assert (export(folder / "run", str(number), folder / "out") / "model.safetensors").is_file()


def test_another_text_is_refused_on_resume(folder: Path) -> None:
    (folder / "text.txt").write_text("another text " * 40)
    name = experiment_file(folder, calibration={"text": "text.txt", "tokens": 256})
    with pytest.raises(StoreError, match="model contents"):
        run(name, folder, 16)


@pytest.mark.parametrize("text", ["text.txt", {"rev": "text.txt"}])
def test_omega_without_a_text_for_the_base_is_refused(folder: Path, text: object) -> None:
    pool = {} if text == "text.txt" else {"calibration": {"text": text}}
    with pytest.raises(ConfigError, match=r"omega needs a text that base can be run over; give one as pool\.calib"):
        load_experiment(experiment_file(folder, **pool))


def test_faults_of_a_calibration_are_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"\$\.pool\.calibration\.text.*expected a text file; nothing at"):
        load_experiment(experiment_file(folder, calibration={"text": "nowhere.txt"}))
    with pytest.raises(ConfigError, match=r"expected texts for \['base', 'rev'\]; got \['nobody'\]"):
        load_experiment(experiment_file(folder, calibration={"text": {"nobody": "text.txt"}}))
    with pytest.raises(ConfigError, match="tokens"):
        load_experiment(experiment_file(folder, calibration={"text": "text.txt", "tokens": 0}))
