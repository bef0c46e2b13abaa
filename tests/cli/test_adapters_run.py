"""A run over LoRA experts, as a person does it: planned, run in core space, exported as a model and as an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.config import shipped_folder
from evomerge.merging.pool import ModelPool
from evomerge.recipe import OPERATORS, Field, Recipe
from evomerge.runs import RunStore

Run = Callable[..., tuple[int, str, str]]
MODELS = shipped_folder("experiments") / "quickstart" / "models"
BASE = MODELS / "base"
MODULES = [f"model.layers.{layer}.{module}" for layer in (0, 1) for module in ("self_attn.q_proj", "mlp.up_proj")]
SMALL = [
    "--set", "space=core_ties",
    "--set", "algorithm={kind: random, population: 4}",
    "--set", "budget.evaluations=8",
    "--set", "fitness.items={search: 8, confirm: 16}",
    "--set", "fitness.confirm.shortlist=1",
]  # fmt: skip


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """What two experts changed, cut down to rank 4."""
    theta_0 = load_file(BASE / "model.safetensors")
    folders = {}
    for name in ("rev", "sort"):
        theta = load_file(MODELS / name / "model.safetensors")
        tensors: dict[str, torch.Tensor] = {}
        for module in MODULES:
            change = theta[f"{module}.weight"].float() - theta_0[f"{module}.weight"].float()
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            stem = f"base_model.model.{module}.lora_"
            tensors |= {f"{stem}A.weight": v[:4].contiguous(), f"{stem}B.weight": (u[:, :4] * s[:4]).contiguous()}
        folders[name] = tmp_path / "adapters" / name
        folders[name].mkdir(parents=True)
        save_file(tensors, folders[name] / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": MODULES, "task_type": "CAUSAL_LM",
        }  # fmt: skip
        (folders[name] / "adapter_config.json").write_text(json.dumps(config))
    return folders


def pool_of(adapters: dict[str, Path]) -> str:
    return f"pool={json.dumps({'base': str(BASE), 'experts': {name: str(path) for name, path in adapters.items()}})}"


def test_a_run_in_core_space_exports_an_adapter(evomerge: Run, adapters: dict[str, Path], tmp_path: Path) -> None:
    folder, model, adapter = tmp_path / "run", tmp_path / "model", tmp_path / "adapter"
    changes = ["--set", pool_of(adapters), *SMALL]
    code, _, err = evomerge("run", "quickstart", "--executor", "serial", "--out", folder, *changes)
    assert code == 0, err
    with RunStore.read(folder) as store:
        number, recipe = next((c.id, c.recipe) for c in store.candidates() if c.recipe.space == "core")
    assert evomerge("replay", folder, "--candidate", number)[1].endswith(" items as recorded\n")

    assert evomerge("export", folder, "--candidate", number, "--out", model)[0] == 0
    config = (model / "mergekit_config.yml").read_text()
    assert "# not reproducible with mergekit: space=core: it merges weights" in config
    assert [m["model"] for m in yaml.safe_load(config)["models"]] == [f"{BASE}+{path}" for path in adapters.values()]
    assert "base+rev" in (model / "README.md").read_text()

    assert evomerge("export", folder, "--candidate", number, "--out", adapter, "--adapter")[0] == 0
    assert Recipe.from_data(json.loads((adapter / "recipe.json").read_text())) == recipe
    assert (adapter / "README.md").is_file()
    assert not (adapter / "model.safetensors").exists()
    exported = load_file(model / "model.safetensors")
    loaded = ModelPool.open(BASE, {"merged": adapter})
    for name, theta in exported.items():
        torch.testing.assert_close(loaded.tensor("merged", name).to(theta.dtype), theta, rtol=2**-7, atol=1e-7)

    folders = [part for name, path in adapters.items() for part in ("--expert", f"{name}={path}")]
    again = ["merge", adapter / "recipe.json", "--out", tmp_path / "again", "--base", BASE, *folders, "--adapter"]
    assert evomerge(*again)[0] == 0
    first, second = (path / "adapter_model.safetensors" for path in (adapter, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()
    in_weights = {key: value for key, value in recipe.to_data().items() if key != "space"}
    (tmp_path / "weights.json").write_text(json.dumps(in_weights))
    again[1:4] = [tmp_path / "weights.json", "--out", tmp_path / "never"]
    code, _, err = evomerge(*again)
    assert code == 2
    assert "got a merge element by element" in err
    assert not (tmp_path / "never").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers in ways that are about to go
def test_an_exported_adapter_is_one_to_peft(evomerge: Run, adapters: dict[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    weights = {"weight": Field.constant([0.7, 0.4], 4), "lambda": Field.constant([1.1], 4)}
    recipe = Recipe(
        operator="task_arithmetic", options=(("normalize", False),), base="base", sources=tuple(adapters),
        parameters=tuple(sorted(weights.items())), dtype="float32",
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_data()))
    folders = [part for name, path in adapters.items() for part in ("--expert", f"{name}={path}")]
    merge = ["merge", tmp_path / "recipe.json", "--base", BASE, *folders, "--out"]
    assert evomerge(*merge, tmp_path / "full")[0] == 0
    assert evomerge(*merge, tmp_path / "adapter", "--adapter")[0] == 0
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    for name, theta in load_file(tmp_path / "full" / "model.safetensors").items():
        torch.testing.assert_close(theirs[name], theta, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operator", ["task_arithmetic", "linear"])
def test_the_file_that_an_export_writes_reads_back(
    evomerge: Run, adapters: dict[str, Path], tmp_path: Path, operator: str
) -> None:
    values = {"weight": [0.7, 0.3], "lambda": [1.1]}
    recipe = Recipe(
        operator=operator, options=(("normalize", False),), base="base" if operator != "linear" else None,
        sources=tuple(adapters), dtype="float32",
        parameters=tuple((name, Field.constant(values[name], 4)) for name in sorted(OPERATORS[operator].parameters)),
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_data()))
    folders = [part for name, path in adapters.items() for part in ("--expert", f"{name}={path}")]
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert evomerge("merge", tmp_path / "recipe.json", "--base", BASE, *folders, "--out", first)[0] == 0
    assert f"{BASE}+{adapters['rev']}" in (first / "mergekit_config.yml").read_text()
    code, _, err = evomerge("merge", first / "mergekit_config.yml", "--out", second)
    assert code == 0, err
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert evomerge("merge", first / "mergekit_config.yml", "--out", third, "--adapter")[0] == 0
    assert (third / "adapter_model.safetensors").is_file()


def test_a_plan_counts_adapters_as_what_they_are(evomerge: Run, adapters: dict[str, Path]) -> None:
    code, out, _ = evomerge("plan", "quickstart", "--set", pool_of(adapters), *SMALL)
    assert code == 0
    words = " ".join(out.split())
    assert "models 1 x 0.2 M parameters, 4 layers, bfloat16, and 2 LoRA adapters on it" in words
    size = sum(path.stat().st_size for folder in (BASE, *adapters.values()) for path in folder.glob("*.safetensors"))
    assert f"{size / 1024:.1f} KiB of model files" in words
    widest = max(theta.numel() for name, theta in load_file(BASE / "model.safetensors").items() if "up_proj" in name)
    assert f"scratch, {3 * 4 * widest / 1024:.1f} KiB for weights that adapters or other vocabularies change" in words
    code, out, _ = evomerge("plan", "quickstart", "--set", pool_of(adapters), *SMALL, "--set", "engine.device=cuda")
    assert code == 0
    assert "4.0 GiB of it for a batch's activations and logits, by rule of thumb" in " ".join(out.split())


def test_core_space_without_adapters_is_refused_before_anything_runs(evomerge: Run) -> None:
    code, _, err = evomerge("check", "quickstart", "--set", "space=core_ties")
    assert code == 2
    assert "rev: core space needs LoRA adapters that keep the base's vocabulary; got a full model" in err
    code, _, err = evomerge("check", "quickstart", "--set", "space.operator={name: slerp, space: core}")
    assert code == 2
    assert "space core takes an operator on task vectors alone, one of task_arithmetic, " in err


SERVED = ["--set", "engine={kind: openai, url: 'http://127.0.0.1:8000'}"]


def test_pools_and_spaces_that_a_server_can_serve(evomerge: Run, adapters: dict[str, Path]) -> None:
    """Without a server: whatever else there is to refuse is refused before one is asked."""
    code, out, err = evomerge("check", "quickstart", "--set", pool_of(adapters), *SERVED)
    assert (code, out.splitlines()[-1][:15]) == (0, "quickstart: ok "), err
    code, out, _ = evomerge("plan", "quickstart", "--set", pool_of(adapters), *SERVED)
    assert code == 0
    assert "--max-lora-rank 8 or more; --max-loras 2 serves all workers at once" in " ".join(out.split())
    code, _, err = evomerge("check", "quickstart", *SERVED)
    assert code == 2
    assert "all experts must be plain LoRA adapters:\n  rev: got a full model\n  sort: got a full model" in err
    code, _, err = evomerge("check", "quickstart", "--set", pool_of(adapters), *SERVED, "--set", "space=ties")
    assert code == 2
    assert "must be sums of adapters' changes; got the operator ties" in err
