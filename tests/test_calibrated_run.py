"""A run that needs all that a text and an optimizer can tell: it ends, replays, exports, and protects its text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from evomerge.config import CalibrationConfig, load_experiment
from evomerge.errors import ConfigError, StoreError
from evomerge.launch import launch
from evomerge.merge import merge
from evomerge.publish import export
from evomerge.replay import rescore
from evomerge.runs import RunStore
from evomerge.stopping import Stop

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "experiments" / "quickstart" / "models"
CHOICES = ("regmean:0.1", "fisher", "ota:0.4")
TEXT = {"text": "text.txt", "tokens": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and an expert with an optimizer's second moments."""
    folder = tmp_path_factory.mktemp("calibrated")
    (folder / "text.txt").write_text("abc def ghij cab bed fig jag " * 40)
    shutil.copytree(MODELS / "rev", folder / "rev")
    generator = torch.Generator().manual_seed(0)
    with safe_open(MODELS / "rev" / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    moments = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    save_file(moments, folder / "rev" / "second_moments.safetensors")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _private_cache(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOMERGE_CACHE", str(folder / "cache"))
        yield


def experiment_file(folder: Path, **pool: object) -> str:
    """A small experiment; written where its text lies."""
    experiment = {
        "version": 1,
        "name": "calibrated",
        "pool": {"base": str(MODELS / "base"), "experts": {"rev": str(folder / "rev")}, **pool},
        "space": {
            "kind": "parameter",
            "operator": {"name": "task_arithmetic"},
            "knots": 1,
            "genes": {"weight": {"edges": "first"}, "omega": {"edges": "first"}},
            "transforms": list(CHOICES),
        },
        "fitness": {
            "tasks": [str(ROOT / "fitness" / "tasks" / "quickstart")],
            "objectives": [{"name": "rev", "task": "quickstart_rev"}],
            "items": {"search": 4, "confirm": 4},
        },
        "algorithm": {"kind": "random", "population": 6},
        "budget": {"evaluations": 9},
        "engine": {"device": "cpu", "dtype": "float32", "batch_size": 64},
    }
    file = folder / "calibrated.yaml"
    file.write_text(yaml.safe_dump(experiment))
    return str(file)


def run(name: str, folder: Path) -> None:
    for _ in launch(load_experiment(name), folder / "run", Stop()):
        pass


def test_every_statistic_through_a_run_and_back(folder: Path) -> None:
    run(experiment_file(folder, calibration=TEXT), folder)
    with RunStore.read(folder / "run") as store:
        found = [candidate for candidate in store.candidates() if candidate.kind == "search"]
    omegas = [candidate.recipe.parameter("omega").at("mlp", 0)[0] for candidate in found]
    assert len(set(omegas)) == 6
    assert all(0.2 <= omega <= 1 for omega in omegas)
    numbers = {candidate.recipe.transforms[0]: candidate.id for candidate in found}
    assert set(numbers) == set(CHOICES)
    weights = set()
    for transform, number in numbers.items():
        shutil.rmtree(folder / "cache")  # what is measured and built comes back, to the same bits
        assert not rescore(folder / "run", str(number)).differing
        out = export(folder / "run", str(number), folder / transform)
        weights.add((out / "model.safetensors").read_bytes())
    assert len(weights) == len(CHOICES)


def test_an_exported_recipe_merges_with_the_text(folder: Path) -> None:
    exported = folder / "regmean:0.1"
    assert json.loads((exported / "recipe.json").read_text())["transforms"] == ["regmean:0.1"]
    models = {"base": MODELS / "base", "rev": folder / "rev"}
    texts = CalibrationConfig(text=folder / "text.txt", tokens=256)
    again = merge(exported / "recipe.json", folder / "again", models, calibration=texts)
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    for text, missing in ((None, ["base", "rev"]), ({"base": folder / "text.txt"}, ["rev"])):
        given = None if text is None else CalibrationConfig(text=text)
        with pytest.raises(ConfigError, match="give it with --calibration FILE") as refused:
            merge(exported / "recipe.json", folder / "never", models, calibration=given)
        assert [fault.path for fault in refused.value.faults] == missing
    texts = CalibrationConfig(text={"nobody": folder / "text.txt"})
    with pytest.raises(ConfigError, match="expected calibration texts for base, rev; got 'nobody'"):
        merge(exported / "recipe.json", folder / "never", models, calibration=texts)


def test_another_text_is_refused_by_its_name(folder: Path) -> None:
    name = experiment_file(folder, calibration={**TEXT, "text": "other.txt"})
    (folder / "other.txt").write_text("another text " * 40)
    with pytest.raises(StoreError, match="calibration text: the run has") as refused:
        run(name, folder)
    assert "model contents" not in str(refused.value)
    (folder / "text.txt").write_text("another text " * 40)
    for ask in (lambda: rescore(folder / "run", "0"), lambda: export(folder / "run", "0", folder / "never")):
        with pytest.raises(StoreError, match="calibration text: the run has"):
            ask()


def test_a_changed_number_of_tokens_is_told_once(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"calibration\.tokens: the run has 256, now it is 128") as refused:
        run(experiment_file(folder, calibration={**TEXT, "tokens": 128}), folder)
    assert str(refused.value).count("the run has") == 1


@pytest.mark.parametrize("text", ["text.txt", {"rev": "text.txt"}])
def test_omega_without_a_text_for_the_base_is_refused(folder: Path, text: object) -> None:
    pool = {} if text == "text.txt" else {"calibration": {"text": text}}
    with pytest.raises(ConfigError, match=r"needs a text that (base|rev) can be run over; give one as pool\.calib"):
        load_experiment(experiment_file(folder, **pool))


def test_faults_of_a_calibration_are_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"\$\.pool\.calibration\.text.*expected a text file; nothing at"):
        load_experiment(experiment_file(folder, calibration={"text": "nowhere.txt"}))
    with pytest.raises(ConfigError, match=r"expected texts for \['base', 'rev'\]; got \['nobody'\]"):
        load_experiment(experiment_file(folder, calibration={"text": {"nobody": "text.txt"}}))
    with pytest.raises(ConfigError, match="tokens"):
        load_experiment(experiment_file(folder, calibration={"text": "text.txt", "tokens": 0}))
