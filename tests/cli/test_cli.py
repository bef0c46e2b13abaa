"""The command line as a person uses it, on the shipped models: the main job, and every kind of broken input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from evomerge.config import shipped_folder
from evomerge.runs import RunStore

SMALL = [
    "--executor", "serial",
    "--set", "algorithm={kind: nsga2, population: 4}",
    "--set", "budget.evaluations=13",
    "--set", "fitness.items={search: 16, confirm: 64}",
    "--set", "fitness.confirm.shortlist=2",
]  # fmt: skip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small quickstart run, made by the installed command in a process of its own."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    command = [sys.executable, "-m", "evomerge", "run", "quickstart", "--out", str(folder), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting 1 worker (serial)" in done.stdout
    assert "confirming" in done.stdout
    assert not done.stderr
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """The shipped models and an experiment over them, to break."""
    source = shipped_folder("experiments")
    shutil.copytree(source / "quickstart" / "models", tmp_path / "quickstart" / "models")
    shutil.copy(source / "quickstart.yaml", tmp_path / "mine.yaml")
    return tmp_path


def test_the_main_job_ends_with_a_verdict_and_a_report(finished: Path, evomerge: Run) -> None:
    assert (finished / "report.html").stat().st_size > 50_000
    code, out, _ = evomerge("status", finished)
    assert code == 0
    assert "finished" in out
    assert "13 of 13" in out


def test_run_on_a_finished_folder_changes_nothing(finished: Path, evomerge: Run) -> None:
    with RunStore.read(finished) as store:
        before = store.archive()
    code, out, _ = evomerge("run", finished)
    assert code == 0
    assert "confirmed" in out
    with RunStore.read(finished) as store:
        assert store.archive() == before


def test_run_folder_goes_on_with_a_larger_budget(copy: Path, evomerge: Run) -> None:
    code, out, _ = evomerge("run", copy, "--set", "budget.evaluations=17")
    assert code == 0
    assert f"{copy}: budget.evaluations grows from 13 to 17" in out.replace("\n", "")
    with RunStore.read(copy) as store:
        assert len(store.results("search")) == 17


def test_the_grown_budget_is_what_the_folder_goes_on_with(copy: Path, evomerge: Run) -> None:
    assert evomerge("run", copy, "--set", "budget.evaluations=17")[0] == 0
    assert evomerge("run", copy)[0] == 0
    assert "17 of 17" in evomerge("status", copy)[1]
    assert "3 generations" in evomerge("replay", copy)[1]
    code, _, err = evomerge("run", copy, "--set", "budget.evaluations=13")
    assert code == 2
    assert "17 candidates are recorded" in err


def test_replay_of_genes_and_of_one_score(finished: Path, evomerge: Run) -> None:
    code, out, _ = evomerge("replay", finished, "--candidate", "knee")
    assert code == 0, out
    assert "2 generations" in out
    assert "256 of 256 items as recorded" in out


def test_a_recipe_inside_its_run_needs_no_folders(copy: Path, evomerge: Run, tmp_path: Path) -> None:
    assert evomerge("export", copy)[0] == 0
    exported = copy / "export" / "knee"
    assert evomerge("merge", exported / "recipe.json", "--out", tmp_path / "again")[0] == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (exported, tmp_path / "again")]
    assert weights[0] == weights[1]
    foreign = copy / "export" / "foreign.json"
    foreign.write_text((exported / "recipe.json").read_text().replace('"sort"', '"another"'))
    code, _, err = evomerge("merge", foreign, "--out", tmp_path / "none")
    assert code == 2
    assert "another: the run" in err
    assert "has no such model; it has base, " in err
    moved = shutil.copy(exported / "recipe.json", tmp_path / "recipe.json")
    code, _, err = evomerge("merge", moved, "--out", tmp_path / "none")
    assert code == 2
    assert "base: expected a model folder; got none; give it with --base FOLDER" in err


def test_export_is_the_model_that_was_scored(finished: Path, evomerge: Run, tmp_path: Path) -> None:
    out = tmp_path / "knee"
    code, told, err = evomerge("export", finished, "--candidate", "knee", "--out", out)
    assert (code, told) == (0, f"{out}\n")
    assert err.startswith("note: knee is ")
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model_relation"] == "merge"
    assert str(shipped_folder("experiments")) not in card
    assert yaml.safe_load((out / "mergekit_config.yml").read_text())["merge_method"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.config import Experiment, TransformersConfig
    from evomerge.engines import TransformersEngine
    from evomerge.merging.pool import ModelPool
    from evomerge.recipe import Recipe

    with RunStore.read(finished) as store:
        experiment = Experiment.model_validate(store.manifest["experiment"])
    engine = TransformersEngine(
        ModelPool.open(experiment.pool.base, experiment.pool.folders), TransformersConfig(device="cpu", dtype="float32")
    )
    engine.load(Recipe.from_data(json.loads((out / "recipe.json").read_text())))
    exported = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert AutoTokenizer.from_pretrained(out)("abc").input_ids
    for name, tensor in engine.model.state_dict().items():
        assert (tensor == exported[name]).all(), name


def test_an_anchor_is_exported_by_name_and_called_that(finished: Path, evomerge: Run, tmp_path: Path) -> None:
    code, _, err = evomerge("export", finished, "--candidate", "uniform", "--out", tmp_path / "uniform")
    assert code == 0
    assert err.startswith("note: uniform is the anchor uniform: ")
    assert json.loads((tmp_path / "uniform" / "recipe.json").read_text())["operator"] == "linear"


def test_export_refuses_what_is_not_there(finished: Path, evomerge: Run, tmp_path: Path) -> None:
    code, _, err = evomerge("export", finished, "--candidate", "best:speed", "--out", tmp_path / "x")
    assert code == 2
    assert "best:rev" in err
    (tmp_path / "x").mkdir()
    code, _, err = evomerge("export", finished, "--out", tmp_path / "x")
    assert code == 2
    assert "does not exist yet" in err


def test_export_refuses_models_that_changed(family: Path, evomerge: Run) -> None:
    assert evomerge("run", family / "mine.yaml", "--out", family / "run", *SMALL)[0] == 0
    shutil.copytree(family / "quickstart/models/sort", family / "quickstart/models/ciph", dirs_exist_ok=True)
    for command in (["export", family / "run"], ["replay", family / "run", "--candidate", "0"]):
        code, _, err = evomerge(*command)
        assert code == 2
        assert "model contents" in err
    code, _, err = evomerge("run", family / "run")
    assert code == 2
    assert "model contents" in err


def test_report_and_its_picture(finished: Path, evomerge: Run, tmp_path: Path) -> None:
    assert evomerge("report", finished, "--out", tmp_path / "r.html", "--png", tmp_path / "front.png")[0] == 0
    assert "<html" in (tmp_path / "r.html").read_text()[:200]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_compares_with_random_searches_only(finished: Path, evomerge: Run) -> None:
    code, _, err = evomerge("report", finished, "--random", finished)
    assert code == 2
    assert "expected a run with algorithm.kind: random to compare with; got nsga2" in err


def test_a_report_that_cannot_be_written(finished: Path, evomerge: Run, tmp_path: Path) -> None:
    code, _, err = evomerge("report", finished, "--out", tmp_path)
    assert code == 3
    assert "choose another --out" in err


def test_the_reader_of_a_pipe_may_go_away(copy: Path) -> None:
    script = f"{sys.executable} -m evomerge run {copy} --set budget.evaluations=21 | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    with RunStore.read(copy) as store:
        assert store.meta("state") == "finished"
        assert len(store.results("search")) == 21


def test_plan_doctor_schema_version(evomerge: Run) -> None:
    code, out, _ = evomerge("plan", "quickstart")
    assert code == 0
    assert "245 = 5 anchors + 8 generations of 30" in out
    assert "850.2 KiB live model, 6.0 MiB scratch" in out
    assert "GPU" not in out
    out = " ".join(evomerge("plan", "quickstart", "--set", "engine.device=cuda")[1].split())
    assert re.search(r"device: 4\.\d GiB on the device; or pinned: .*, 1\.7 MiB of host memory; or mapped", out)
    code, out, _ = evomerge("doctor")
    assert code == 0
    assert "torch" in out
    code, out, _ = evomerge("schema")
    assert json.loads(out)["properties"]["budget"]
    assert evomerge("--version")[1].startswith("evomerge ")


def test_shipped_experiments_fit_the_exported_schema(evomerge: Run) -> None:
    import jsonschema

    from evomerge.config import load_experiment

    schema = json.loads(evomerge("schema")[1])
    jsonschema.validate(load_experiment("quickstart").model_dump(mode="json"), schema)


def test_init_writes_what_check_accepts(family: Path, evomerge: Run) -> None:
    models, file = family / "quickstart" / "models", family / "new.yaml"
    tasks = shipped_folder("fitness") / "tasks" / "quickstart"
    experts = [f"--expert={name}={models / name}" for name in ("rev", "sort")]
    arguments = ["init", file, "--base", models / "base", *experts, "--task", tasks]
    assert evomerge(*arguments)[0] == 0
    assert evomerge("check", file)[0] == 0
    code, _, err = evomerge(*arguments)
    assert code == 2
    assert "a name that is free" in err
    code, _, err = evomerge(
        "init", family / "b.yaml", "--base", models / "none", "--expert", f"a={models}", "--task", tasks
    )
    assert code == 2
    assert "expected a model folder" in err
    assert not (family / "b.yaml").exists()
    code, _, err = evomerge("init", family / "b.yaml", "--base", models, "--expert", "a", "--task", tasks)
    assert code == 2


def broken(evomerge: Run, family: Path, *expected: str, command: str = "check", extra: tuple[str, ...] = ()) -> None:
    """One message, exit code 2, no run folder left."""
    out = ["--out", str(family / "out")] if command == "run" else []
    code, _, err = evomerge(command, family / "mine.yaml", *out, *extra)
    assert code == 2, err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for text in expected:
        assert text in err


def edit(family: Path, old: str, new: str) -> None:
    file = family / "mine.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_unknown_key_wrong_type_missing_file(family: Path, evomerge: Run) -> None:
    edit(family, "seed: 0", "sede: 0")
    edit(family, "evaluations: 245", "evaluations: plenty")
    edit(family, "models/ciph", "models/cipher")
    broken(evomerge, family, "did you mean 'seed'?", "expected a whole number; got 'plenty'")
    edit(family, "ciph: quickstart", "uniform: quickstart")
    broken(evomerge, family, "'uniform' means something else")
    edit(family, "uniform: quickstart", "ciph: quickstart")
    edit(family, "sede: 0", "seed: 0")
    edit(family, "evaluations: plenty", "evaluations: 245")
    broken(evomerge, family, "$.pool.experts.ciph (line 9): expected a model folder; nothing at")


def test_models_of_different_shape(family: Path, evomerge: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = family / "quickstart" / "models" / "rev"
    config = LlamaConfig.from_pretrained(folder)
    config.intermediate_size = 96
    LlamaForCausalLM(config).save_pretrained(folder)
    capsys.readouterr()  # the library's progress bar
    broken(evomerge, family, "rev", "intermediate_size", "192", "96")


def test_a_tokenizer_that_differs(family: Path, evomerge: Run) -> None:
    file = family / "quickstart" / "models" / "sort" / "tokenizer.json"
    data = json.loads(file.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(data))
    broken(evomerge, family, "sort", "tokenizer.json")


def test_a_weight_that_is_not_a_number(family: Path, evomerge: Run) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = family / "quickstart" / "models" / "ciph" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    broken(evomerge, family, "ciph", "model.norm.weight", "NaN")


def test_a_truncated_weight_file(family: Path, evomerge: Run) -> None:
    file = family / "quickstart" / "models" / "rev" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    broken(evomerge, family, str(file))


def test_a_task_that_does_not_exist(family: Path, evomerge: Run) -> None:
    fitness = yaml.safe_load((shipped_folder("fitness") / "quickstart.yaml").read_text())
    fitness["objectives"][0]["task"] = "quickstart_rve"
    fitness["tasks"] = [str(shipped_folder("fitness") / "tasks" / "quickstart")]
    edit(family, "fitness: quickstart", f"fitness: {json.dumps(fitness)}")
    broken(evomerge, family, "quickstart_rve", "quickstart_rev", command="run", extra=("--executor", "serial"))


def test_an_item_set_too_small_to_split(family: Path, evomerge: Run) -> None:
    extra = ("--executor", "serial", "--set", "fitness.items.confirm=500")
    broken(evomerge, family, "quickstart_rev", "512", "596", command="run", extra=extra)
    assert not RunStore.exists(family / "out")  # so the repaired experiment may start there


def test_a_run_folder_that_cannot_be_written(family: Path, evomerge: Run) -> None:
    (family / "file").write_text("in the way")
    code, _, err = evomerge("run", "quickstart", "--out", family / "file" / "run", "--executor", "serial")
    assert code == 2
    assert str(family / "file") in err


def test_a_second_driver(copy: Path, evomerge: Run) -> None:
    with RunStore.open(copy):
        code, _, err = evomerge("run", copy)
    assert code == 2
    assert "process" in err or "driver" in err


def test_a_changed_space_on_resume(copy: Path, evomerge: Run) -> None:
    code, _, err = evomerge("run", copy, "--set", "space.knots=2")
    assert code == 2
    assert "$.space.knots: the run has 4, now it is 2" in err
    assert "genes" not in err, "they follow from the knots"
    assert f"To go on with the run's own settings: evomerge run {copy}" in err
    assert "choose another folder with --out" in err
    code, _, err = evomerge("run", copy, "--set", "fitness.objectives=[{name: rev, task: quickstart_rev, weight: 2}]")
    assert code == 2
    assert "$.fitness.objectives[0].weight: the run has 1.0, now it is 2.0" in err
    assert "$.fitness.objectives[1].name: the run has 'sort', now it is nothing" in err


def test_commands_on_a_folder_without_a_run(tmp_path: Path, evomerge: Run) -> None:
    for command in ("run", "status", "report", "export", "replay"):
        code, _, err = evomerge(command, tmp_path)
        assert code == 2, command
        assert str(tmp_path) in err


def test_spaces_that_contradict_the_pool(family: Path, evomerge: Run) -> None:
    broken(evomerge, family, "$.space.knots", "9", "4", extra=("--set", "space.knots=9"))
    broken(evomerge, family, "slerp", extra=("--set", "space=slerp"))
