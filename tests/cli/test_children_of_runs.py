"""Winners of an earlier run as experts of the next, as a person uses them, on the shipped models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from evomerge.config import load_experiment, shipped_folder
from evomerge.errors import ConfigError, PoolError, StoreError
from evomerge.pools import open_pool, pinned, placed
from evomerge.runs import RunStore

Run = Callable[..., tuple[int, str, str]]
MODELS = shipped_folder("experiments") / "quickstart" / "models"


def written(file: Path, experts: dict[str, Any], base: Path = MODELS / "base", **changes: Any) -> Path:
    data = {
        "version": 1,
        "name": file.stem,
        "pool": {"base": str(base), "experts": experts},
        "space": "task_arithmetic",
        "fitness": {
            "tasks": [str(shipped_folder("fitness") / "tasks" / "quickstart")],
            "objectives": [{"name": name, "task": f"quickstart_{name}"} for name in ("rev", "sort")],
            "items": {"search": 8, "confirm": 16},
            "confirm": {"shortlist": 2},
        },
        "algorithm": {"kind": "nsga2", "population": 4},
        "budget": {"evaluations": len(experts) + 2 + 4},
        "engine": {"kind": "transformers", "device": "cpu", "dtype": "float32"},
    }
    file.write_text(yaml.safe_dump(data | changes))
    return file


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def shared_cache(evomerge: Run, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(cache))


@pytest.fixture
def first(evomerge: Run, cache: Path, tmp_path: Path) -> Path:
    """A finished run over copies of the shipped models; made once, then copied with its models' places unchanged."""
    kept = cache / "first"
    if not kept.exists():
        shutil.copytree(MODELS, cache / "models")
        experts = {name: str(cache / "models" / name) for name in ("rev", "sort")}
        file = written(cache / "first.yaml", experts, cache / "models" / "base")
        assert evomerge("run", file, "--out", kept)[0] == 0
    return Path(shutil.copytree(kept, tmp_path / "first"))


def second(tmp_path: Path, run: Path, candidate: Any = "knee", **changes: Any) -> Path:
    experts = {"ciph": str(MODELS / "ciph"), "child": {"run": str(run), "candidate": candidate}}
    return written(tmp_path / "second.yaml", experts, **changes)


def number_of(run: Path, **wanted: str) -> int:
    with RunStore.read(run) as store:
        return next(c.id for c in store.candidates() if all(getattr(c, k) == v for k, v in wanted.items()))


def test_all_commands_take_a_child(evomerge: Run, first: Path, tmp_path: Path) -> None:
    file, run = second(tmp_path, first), tmp_path / "run"
    assert evomerge("check", file)[0] == 0
    assert "3 x" in evomerge("plan", file)[1]
    assert "child" in evomerge("pool", file)[1]
    assert evomerge("run", file, "--out", run)[0] == 0
    assert evomerge("run", run)[0] == 0
    assert evomerge("run", file, "--out", run)[0] == 0
    assert "as recorded" in evomerge("replay", run, "--candidate", "0")[1]
    child = number_of(run, label="child")
    assert evomerge("export", run, "--candidate", child, "--out", tmp_path / "out")[0] == 0
    with RunStore.read(run) as store:
        recorded = store.experiment["pool"]["experts"]["child"]
        children = json.loads(store.meta("children") or "{}")
    assert recorded["candidate"] == "knee"
    assert recorded["recipe"] == children["child"]["digest"]
    assert f"candidate {recorded['number']} of first" in (tmp_path / "out" / "README.md").read_text()


def test_a_child_is_what_an_export_writes(evomerge: Run, first: Path, tmp_path: Path) -> None:
    assert evomerge("export", first, "--out", tmp_path / "exported")[0] == 0
    folder = placed(load_experiment(str(second(tmp_path, first))).pool).folders["child"]
    names = {file.name for file in (tmp_path / "exported").iterdir()}
    assert {file.name for file in folder.iterdir()} == names
    for name in names - {"README.md"}:  # which names the folder of the run
        assert (folder / name).read_bytes() == (tmp_path / "exported" / name).read_bytes(), name


def test_a_child_is_written_once_and_again_when_it_is_gone(first: Path, tmp_path: Path) -> None:
    pool = load_experiment(str(second(tmp_path, first))).pool
    folder = placed(pool).folders["child"]
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert placed(pool).folders["child"] == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    content = (folder / "model.safetensors").read_bytes()
    shutil.rmtree(folder)
    assert (placed(pool).folders["child"] / "model.safetensors").read_bytes() == content


def test_a_run_keeps_to_the_child_that_it_began_with(evomerge: Run, first: Path, tmp_path: Path) -> None:
    file, run = second(tmp_path, first), tmp_path / "run"
    assert evomerge("run", file, "--out", run)[0] == 0
    began = pinned(load_experiment(str(file)), run).pool.children["child"]
    other = 0 if began.number != 0 else 1
    code, _, err = evomerge("run", second(tmp_path, first, other), "--out", run)
    assert code != 0
    assert f"$.pool.children.child.candidate: the run has 'knee', now it is '{other}'" in err
    with RunStore.open(first) as store, store._transaction() as db:
        db.execute("DELETE FROM response WHERE phase = 'confirm'")
        db.execute("DELETE FROM result WHERE phase = 'confirm'")
    assert pinned(load_experiment(str(second(tmp_path, first))), run).pool.children["child"] == began


class TestRefused:
    def test_a_run_that_is_missing(self, first: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"experts\.child\.run.*expected a run folder; nothing at"):
            load_experiment(str(second(tmp_path, tmp_path / "nowhere")))
        (tmp_path / "empty").mkdir()
        with pytest.raises(StoreError, match="empty"):
            open_pool(load_experiment(str(second(tmp_path, tmp_path / "empty"))))

    def test_a_candidate_that_is_not_there(self, first: Path, tmp_path: Path) -> None:
        for candidate in (99, "best:nothing"):
            with pytest.raises(StoreError, match=f"expected a candidate, one of knee, .*got '{candidate}'"):
                open_pool(load_experiment(str(second(tmp_path, first, candidate))))

    def test_a_run_that_is_not_finished(self, first: Path, tmp_path: Path) -> None:
        with RunStore.open(first) as store:
            store.set_meta("state", "stopped")
        for candidate in ("knee", "best:rev"):
            with pytest.raises(StoreError, match=r"expected a finished run, .*got one that is stopped; finish it"):
                open_pool(load_experiment(str(second(tmp_path, first, candidate))))
        base = number_of(first, label="base")
        assert "child" in open_pool(load_experiment(str(second(tmp_path, first, base)))).names

    def test_keys_that_are_unknown(self, first: Path, tmp_path: Path) -> None:
        file = second(tmp_path, first)
        data = yaml.safe_load(file.read_text())
        data["pool"]["experts"]["child"] = {"run": str(first), "candidat": "knee"}
        file.write_text(yaml.safe_dump(data))
        with pytest.raises(ConfigError) as caught:
            load_experiment(str(file))
        assert "$.pool.experts.child.candidat" in str(caught.value)
        assert "did you mean 'candidate'?" in str(caught.value)

    def test_a_run_whose_models_changed(self, first: Path, cache: Path, tmp_path: Path) -> None:
        shutil.rmtree(cache / "children", ignore_errors=True)
        changed = cache / "models" / "rev" / "model.safetensors"
        before = changed.read_bytes()
        save_file({name: tensor + 1e-3 for name, tensor in load_file(changed).items()}, changed, {"format": "pt"})
        try:
            with pytest.raises(StoreError, match="model contents: the run has"):
                open_pool(load_experiment(str(second(tmp_path, first, number_of(first, label="base")))))
        finally:
            changed.write_bytes(before)

    def test_a_base_of_another_shape(self, first: Path, cache: Path, tmp_path: Path) -> None:
        shutil.rmtree(cache / "children", ignore_errors=True)
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(MODELS / "base")
        config.num_hidden_layers += 1
        config.layer_types = None
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "deeper")
        file = second(tmp_path, first, number_of(first, label="sort"), base=tmp_path / "deeper")
        with pytest.raises(
            PoolError, match=r"child: candidate \d+ of .* expected layers of the shape that .*deeper has"
        ):
            open_pool(load_experiment(str(file)))

    def test_a_recipe_that_is_not_the_recorded_one(self, first: Path, tmp_path: Path) -> None:
        experiment = pinned(load_experiment(str(second(tmp_path, first))), tmp_path / "run")
        child = experiment.pool.children["child"].model_copy(update={"recipe": "0" * 32})
        pool = experiment.pool.model_copy(update={"experts": {"child": child}})
        with pytest.raises(StoreError, match="the folder holds another run now"):
            placed(pool)
