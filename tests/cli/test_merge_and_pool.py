"""Merging once and looking at a pool, as a person does it, on the shipped models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.config import shipped_folder
from evomerge.merging.pool import ModelPool
from evomerge.merging.reference import reference_merge
from evomerge.recipe import Hop, Recipe, uniform

Run = Callable[..., tuple[int, str, str]]
MODELS = shipped_folder("experiments") / "quickstart" / "models"


def ties(**changes: Any) -> dict[str, Any]:
    weights = {"rev": [0.2, 0.9], "sort": [{"filter": "mlp", "value": 0.7}, {"value": 0.4}]}
    models = [{"model": str(MODELS / name), "parameters": {"weight": weight}} for name, weight in weights.items()]
    parameters = {"density": 0.5, "lambda": [1.2, 0.8]}
    return {
        "merge_method": "ties", "base_model": str(MODELS / "base"), "models": models, "parameters": parameters,
        "out_dtype": "float32", **changes,
    }  # fmt: skip


def written(file: Path, config: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def test_a_mergekit_file_and_then_its_own_recipe(evomerge: Run, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    file = written(tmp_path / "ties.yml", ties())
    assert evomerge("merge", file, "--out", first) == (0, f"{first}\n", "")
    recipe = Recipe.from_data(json.loads((first / "recipe.json").read_text()))
    assert recipe.parameter("lambda").at("head", None) == (1.2,)
    assert recipe.parameter("weight").at("mlp", recipe.layers - 1) == (0.9, 0.7)
    folders = ["--base", MODELS / "base", "--expert", f"rev={MODELS / 'rev'}", "--expert", f"sort={MODELS / 'sort'}"]
    assert evomerge("merge", first / "recipe.json", "--out", second, *folders)[0] == 0
    assert evomerge("merge", first / "mergekit_config.yml", "--out", third)[0] == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, second, third)]
    assert weights[0] == weights[1] == weights[2]
    merged = load_file(first / "model.safetensors")
    pool = ModelPool.open(MODELS / "base", {name: MODELS / name for name in ("rev", "sort")})
    for name, expected in reference_merge(recipe, pool):
        assert torch.allclose(merged[name].double(), expected, rtol=1e-6, atol=1e-7), name


def test_a_recipe_with_a_path_is_merged_as_any_other(evomerge: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    inside = (Hop(source="rev", layer=1, scale=0.5), Hop(layer=1))
    path = (Hop(source="rev", layer=0), *inside, Hop(source="sort", layer=3))
    recipe = replace(uniform(("base", "rev"), layers=4, dtype="float32"), path=path)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_data()))
    folders = ["--base", MODELS / "base", "--expert", f"rev={MODELS / 'rev'}", "--expert", f"sort={MODELS / 'sort'}"]
    out = tmp_path / "out"
    assert evomerge("merge", tmp_path / "recipe.json", "--out", out, *folders)[0] == 0
    merged = load_file(out / "model.safetensors")
    pool = ModelPool.open(MODELS / "base", {name: MODELS / name for name in ("rev", "sort")})
    expected = dict(reference_merge(recipe, pool))
    assert merged.keys() == expected.keys()
    assert all(torch.allclose(merged[name].double(), expected[name], rtol=1e-6, atol=1e-7) for name in merged)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 4
    reasons = ("path through layers of a merge", "scales of the residual stream")
    text = (out / "mergekit_config.yml").read_text()
    assert all(f"# not reproducible with mergekit: {reason}" in text for reason in reasons)
    code, _, error = evomerge("merge", tmp_path / "recipe.json", "--out", tmp_path / "lora", "--adapter", *folders)
    assert code == 2
    assert "got a path through layers" in error


def test_a_merge_loads_like_any_other_model(evomerge: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [{"model": str(MODELS / name)} for name in ("rev", "sort")]
    config = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    assert evomerge("merge", written(tmp_path / "soup.yml", config), "--out", tmp_path / "soup")[0] == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "soup")("abc").input_ids
    soup = AutoModelForCausalLM.from_pretrained(tmp_path / "soup").state_dict()
    parents = [load_file(MODELS / name / "model.safetensors") for name in ("rev", "sort")]
    for name, tensor in parents[0].items():
        mean = (tensor.float() + parents[1][name].float()) / 2
        assert torch.equal(soup[name], mean.to(soup[name].dtype)), name


def test_models_of_the_hub_are_given_a_folder(evomerge: Run, tmp_path: Path) -> None:
    config = ties(base_model="org/base-model", models=[{"model": "org/rev", "parameters": {"weight": 1}}])
    file = written(tmp_path / "hub.yml", config)
    code, _, err = evomerge("merge", file, "--out", tmp_path / "out")
    assert code == 2
    assert "base: expected a model folder; nothing at org/base-model; give it with --base FOLDER" in err
    assert "--expert rev=FOLDER" in err
    folders = ["--base", MODELS / "base", "--expert", f"rev={MODELS / 'rev'}"]
    assert evomerge("merge", file, "--out", tmp_path / "out", *folders)[0] == 0
    code, _, err = evomerge("merge", file, "--out", tmp_path / "new", *folders, "--expert", f"sort={MODELS / 'sort'}")
    assert code == 2
    assert "sort: the file knows no such model; it has base, rev" in err
    code, _, err = evomerge("merge", file, "--out", tmp_path / "out", *folders)
    assert code == 2
    assert "does not exist yet" in err


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yml", "merge_method: arcee_fusion\nmodels: [{model: x}]\n", "$.merge_method (line 1): expected one of"),
        ("a.json", "{}", "expected a recipe as `evomerge export` writes it; got KeyError"),
        ("a.json", "[", "expected a recipe as `evomerge export` writes it; got JSONDecodeError"),
        ("none.yml", None, "cannot be read"),
    ],
)
def test_files_that_say_no_merge(evomerge: Run, tmp_path: Path, name: str, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    code, _, err = evomerge("merge", tmp_path / name, "--out", tmp_path / "out")
    assert code == 2
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_whose_tokenizer_a_merge_takes(evomerge: Run, tmp_path: Path) -> None:
    for name in ("base", "rev"):
        shutil.copytree(MODELS / name, tmp_path / name)
    template = tmp_path / "rev" / "chat_template.jinja"
    template.write_text("{{ messages }}")
    (tmp_path / "base" / "chat_template.jinja").write_text("other")
    model = {"model": str(tmp_path / "rev"), "parameters": {"weight": 1}}
    file = written(tmp_path / "a.yml", ties(base_model=str(tmp_path / "base"), models=[model]))
    code, _, err = evomerge("merge", file, "--out", tmp_path / "out")
    assert code == 2
    assert "say with pool.tokenizer (or --tokenizer) whose" in err
    assert evomerge("merge", file, "--out", tmp_path / "out", "--tokenizer", "rev")[0] == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template.read_text()
    config = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert config["tokenizer_source"] == str(tmp_path / "rev")
    again = tmp_path / "again"
    assert evomerge("merge", tmp_path / "out" / "mergekit_config.yml", "--out", again)[0] == 0
    assert (again / "chat_template.jinja").read_text() == template.read_text()
    folders = ["--base", tmp_path / "base", "--expert", f"rev={tmp_path / 'rev'}"]
    assert evomerge("pool", *folders)[0] == 2
    assert evomerge("pool", *folders, "--tokenizer", "rev")[0] == 0
    code, _, err = evomerge("pool", *folders, "--tokenizer", "sort")
    assert code == 2
    assert "expected a tokenizer of one of the models ['base', 'rev']; got 'sort'" in err


def test_values_are_checked_against_the_models(evomerge: Run, tmp_path: Path) -> None:
    config = ties(parameters={"lambda": [{"filter": "q_proj", "value": 0.5}, {"value": 0.7}]})
    code, _, err = evomerge("merge", written(tmp_path / "a.yml", config), "--out", tmp_path / "out")
    assert code == 2
    assert "q_proj.weight 0.5" in err


def test_a_pool_by_experiment_and_by_folders(evomerge: Run, tmp_path: Path) -> None:
    page = tmp_path / "pool.html"
    code, by_experiment, _ = evomerge("pool", "quickstart", "--html", page)
    assert code == 0
    assert "no alarms" in by_experiment
    assert "sort" in page.read_text()
    folders = [f"--expert={name}={MODELS / name}" for name in ("rev", "sort", "ciph")]
    code, by_folders, _ = evomerge("pool", "--base", MODELS / "base", *folders)
    assert code == 0
    assert by_experiment == f"{by_folders}{page}\n"


def test_alarms_are_seen_from_the_command_line(evomerge: Run, tmp_path: Path) -> None:
    shutil.copytree(MODELS / "rev", tmp_path / "locked")
    tensors = load_file(tmp_path / "locked" / "model.safetensors")
    for name, tensor in tensors.items():
        if "q_proj" in name or "k_proj" in name:
            tensors[name] = -tensor
    save_file(tensors, tmp_path / "locked" / "model.safetensors", metadata={"format": "pt"})
    experts = {"rev": MODELS / "rev", "again": MODELS / "rev", "base2": MODELS / "base", "locked": tmp_path / "locked"}
    code, out, _ = evomerge("pool", "--base", MODELS / "base", *(f"--expert={n}={f}" for n, f in experts.items()))
    assert code == 0
    flowing = " ".join(out.split())
    assert "base2: equal to the base in every weight" in flowing
    assert "locked: changes attention weights by" in flowing
    assert "rev: the same as again (equal in every weight)" in flowing


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["quickstart", "--base", "x"],
        ["--base", "x"],
        ["--expert", "a=x"],
        ["--tokenizer", "a"],
        ["quickstart", "--tokenizer", "rev"],
    ],
)
def test_a_pool_is_one_or_the_other(evomerge: Run, arguments: list[str]) -> None:
    code, _, err = evomerge("pool", *arguments)
    assert code == 2
    assert "expected an experiment, or --base and --expert" in err
