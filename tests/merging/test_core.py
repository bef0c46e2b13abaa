"""Adapters merged in the coordinates that they share, against weights and the oracle."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import MergeError, PoolError
from evomerge.merging.adapters import export_adapter
from evomerge.merging.core import core_space
from evomerge.merging.executor import execute
from evomerge.merging.factors import Factors
from evomerge.merging.lora import Adapter
from evomerge.merging.operators import lower
from evomerge.merging.plan import Copy, Core, Damping, MergePlan
from evomerge.merging.pool import ModelPool
from evomerge.merging.reference import reference_merge
from evomerge.recipe import OPERATORS, Field, Hop, Recipe, options_of

MakeFamily = Callable[..., Any]
Q, K, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.2.mlp.down_proj"
SHAPES = {Q: (16, 16), K: (8, 16), DOWN: (16, 24)}
ON_TASK_VECTORS = [name for name, operator in OPERATORS.items() if operator.core]


def write_adapter(folder: Path, ranks: dict[str, int], seed: int, **whole: torch.Tensor) -> Path:
    """A PEFT folder with random factors of some modules, and weights stored whole."""
    random = torch.Generator().manual_seed(seed)
    tensors = {f"base_model.model.{name}": values for name, values in whole.items()}
    for module, rank in ranks.items():
        rows, columns = SHAPES[module]
        stem = f"base_model.model.{module}.lora_"
        tensors[f"{stem}A.weight"] = torch.randn(rank, columns, generator=random)
        tensors[f"{stem}B.weight"] = 0.02 * torch.randn(rows, rank, generator=random)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def base(make_family: MakeFamily) -> Path:
    folder: Path = make_family(experts=(), dtype="float32").base
    return folder


@pytest.fixture
def experts(tmp_path: Path) -> dict[str, Path]:
    """Three adapters: all change Q, two change DOWN, one K."""
    return {
        "one": write_adapter(tmp_path / "one", {Q: 3, DOWN: 2}, 1),
        "two": write_adapter(tmp_path / "two", {Q: 2, DOWN: 4}, 2),
        "three": write_adapter(tmp_path / "three", {Q: 2, K: 3}, 3),
    }


@pytest.fixture
def pool(base: Path, experts: dict[str, Path]) -> ModelPool:
    return ModelPool.open(base, experts)


def recipe_of(operator: str, pool: ModelPool, *, space: str = "core", **values: Any) -> Recipe:
    table = OPERATORS[operator]
    sources = values.pop("sources", pool.experts)[: table.max_sources]
    chosen = {"weight": (0.4, 0.7, 1.0)[: len(sources)], "density": (0.5, 0.8, 0.6)[: len(sources)], **values}

    def row(name: str) -> list[float]:
        parameter = table.parameters[name]
        usual = parameter.default if parameter.default is not None else 0.5
        return list(chosen.get(name, [usual] * (len(sources) if parameter.scope == "source" else 1)))

    return Recipe(
        operator=operator,
        options=options_of(table, "paper"),
        base="base",
        sources=sources,
        space=space,  # type: ignore[arg-type]
        parameters=tuple((name, Field.constant(row(name), pool.layers)) for name in sorted(table.parameters)),
        mask_seed=5,
        dtype="float32",
    )


def merged(recipe: Recipe, pool: ModelPool) -> dict[str, torch.Tensor]:
    return dict(execute(lower(recipe, pool), pool))


@pytest.mark.parametrize("operator", ON_TASK_VECTORS)
def test_equals_the_oracle(pool: ModelPool, operator: str) -> None:
    recipe = recipe_of(operator, pool)
    wanted = dict(reference_merge(recipe, pool))
    for name, got in merged(recipe, pool).items():
        torch.testing.assert_close(got.double(), wanted[name], rtol=1e-5, atol=2e-6)


def test_layers_of_a_merge_in_core_space_are_moved_like_others(pool: ModelPool) -> None:
    path = (Hop(layer=0), Hop(layer=2), Hop(source="one", layer=0), Hop(layer=0, scale=2.0), Hop(layer=2))
    recipe = replace(recipe_of("ties", pool), path=path)
    wanted = dict(reference_merge(recipe, pool))
    found = merged(recipe, pool)
    assert found.keys() == wanted.keys()
    for name, got in found.items():
        torch.testing.assert_close(got.double(), wanted[name], rtol=1e-5, atol=2e-6)


def test_a_sum_is_the_same_in_either_space(pool: ModelPool) -> None:
    in_core, in_weights = (
        merged(recipe_of("task_arithmetic", pool, space=space), pool) for space in ("core", "weights")
    )
    for name, theta in in_weights.items():
        torch.testing.assert_close(in_core[name], theta, rtol=1e-6, atol=1e-6)
    changed = {name for name, theta in in_core.items() if not torch.equal(theta, pool.tensor("base", name))}
    assert changed == {f"{module}.weight" for module in SHAPES}


@pytest.mark.parametrize("operator", ["ties", "dare_linear", "iso_c", "magmax"])
def test_what_is_not_a_sum_differs(pool: ModelPool, operator: str) -> None:
    in_core, in_weights = (
        merged(recipe_of(operator, pool, space=space), pool)[f"{Q}.weight"] for space in ("core", "weights")
    )
    assert not torch.allclose(in_core, in_weights, atol=1e-4)


def test_coordinates_are_those_of_orthonormal_bases(pool: ModelPool) -> None:
    space = core_space(pool, pool.experts)
    assert {name: span.shape for name, span in space.spans.items()} == {
        f"{Q}.weight": (7, 7),
        f"{K}.weight": (3, 3),
        f"{DOWN}.weight": (6, 6),
    }
    for name in space.spans:
        for expert in pool.experts:
            change = pool.tensor(expert, name).double() - pool.tensor("base", name).double()
            core = space.pool.tensor(expert, name)
            torch.testing.assert_close(core.double().norm(), change.norm(), rtol=1e-5, atol=1e-7)
            left, right = space.spans[name].factors(core)
            torch.testing.assert_close((left @ right).double(), change, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(right @ right.T, torch.eye(len(right)), rtol=0, atol=1e-6)
    assert space.pool.tensor("three", f"{DOWN}.weight").count_nonzero() == 0  # it does not change that weight
    assert space.pool.tensor("base", f"{Q}.weight").count_nonzero() == 0


def test_a_space_is_made_once(pool: ModelPool) -> None:
    assert core_space(pool, pool.experts) is core_space(pool, pool.experts)
    assert core_space(pool, ("one", "two")).pool.digest != core_space(pool, pool.experts).pool.digest
    again = pickle.loads(pickle.dumps(pool))
    recipe = recipe_of("ties", pool)
    assert lower(recipe, again) == lower(recipe, pool)


def test_equal_and_untrained_adapters(base: Path, tmp_path: Path) -> None:
    folders = {name: write_adapter(tmp_path / name, {Q: 3}, 1) for name in ("one", "two", "idle")}
    file = folders["idle"] / "adapter_model.safetensors"
    save_file({name: values * ("lora_A" in name) for name, values in load_file(file).items()}, file)
    pool = ModelPool.open(base, folders)
    assert core_space(pool, pool.experts).spans[f"{Q}.weight"].shape == (3, 3)
    recipe = recipe_of("ties", pool, weight=[1.0, 1.0, 0.0], density=[1.0, 1.0, 1.0])
    torch.testing.assert_close(merged(recipe, pool)[f"{Q}.weight"], pool.tensor("one", f"{Q}.weight"))
    alone = recipe_of("ties", pool, sources=("idle",))
    assert {tensor.kernel for tensor in lower(alone, pool).tensors} == {Copy(source="base")}


def test_weights_that_are_stored_whole_are_merged_as_weights(
    base: Path, experts: dict[str, Path], tmp_path: Path
) -> None:
    norm = torch.linspace(0.5, 2.0, 16)
    whole = {"model.norm.weight": norm, f"{K}.weight": torch.full((8, 16), 0.01)}
    experts["whole"] = write_adapter(tmp_path / "whole", {Q: 2}, 4, **whole)
    pool = ModelPool.open(base, experts)
    recipe = recipe_of("ties", pool, weight=[1.0] * 4, density=[0.7] * 4)
    plan = {tensor.name: tensor.kernel for tensor in lower(recipe, pool).tensors}
    assert {name for name, kernel in plan.items() if isinstance(kernel, Core)} == {f"{Q}.weight", f"{DOWN}.weight"}
    wanted, got = dict(reference_merge(recipe, pool)), merged(recipe, pool)
    for name, theta in got.items():
        torch.testing.assert_close(theta.double(), wanted[name], rtol=1e-5, atol=2e-6)
    assert not torch.equal(got["model.norm.weight"], pool.tensor("base", "model.norm.weight"))


def test_transposed_modules(make_family: MakeFamily, tmp_path: Path) -> None:
    base = make_family(kind="gpt2", experts=(), tied=True, dtype="float32").base
    random = torch.Generator().manual_seed(0)
    folders = {}
    for name in ("one", "two"):
        stem = "base_model.model.transformer.h.1.attn.c_attn.lora_"
        tensors = {f"{stem}A.weight": torch.randn(2, 16, generator=random)}
        tensors[f"{stem}B.weight"] = 0.02 * torch.randn(48, 2, generator=random)
        folders[name] = tmp_path / name
        folders[name].mkdir()
        save_file(tensors, folders[name] / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": True}
        (folders[name] / "adapter_config.json").write_text(json.dumps(config))
    pool = ModelPool.open(base, folders)
    recipe = recipe_of("magmax", pool)
    wanted = dict(reference_merge(recipe, pool))
    export_adapter(lower(recipe, pool), pool, tmp_path / "merged")
    loaded = ModelPool.open(base, {"merged": tmp_path / "merged"})
    for name, got in merged(recipe, pool).items():
        torch.testing.assert_close(got.double(), wanted[name], rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(loaded.tensor("merged", name), got, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operator", ["ties", "dare_ties", "iso_c", "karcher_delta"])
def test_a_merge_in_core_space_is_an_adapter(pool: ModelPool, base: Path, tmp_path: Path, operator: str) -> None:
    recipe = recipe_of(operator, pool)
    export_adapter(lower(recipe, pool), pool, tmp_path / "merged", extra_files={"recipe.json": "{}"})
    loaded = ModelPool.open(base, {"merged": tmp_path / "merged"})
    for name, theta in merged(recipe, pool).items():
        torch.testing.assert_close(loaded.tensor("merged", name), theta, rtol=1e-6, atol=1e-6)
    adapter = loaded.models["merged"]
    assert isinstance(adapter, Adapter)
    assert {change.rank for change in adapter.factors.values()} == {7}  # at most the sum of the ranks
    assert (tmp_path / "merged" / "recipe.json").read_text() == "{}"


def test_full_models_are_refused_by_name(make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family(experts=("full",))
    pool = ModelPool.open(family.base, {"lora": write_adapter(tmp_path / "lora", {Q: 2}, 1), **family.experts})
    with pytest.raises(PoolError, match=r"full: core space needs LoRA adapters .*; got a full model"):
        lower(recipe_of("ties", pool), pool)


def test_the_base_must_be_that_of_the_adapters(pool: ModelPool) -> None:
    data = {**recipe_of("ties", pool, sources=("two", "three")).to_data(), "base": "one"}
    with pytest.raises(MergeError, match="core space: expected 'base' as base"):
        lower(Recipe.from_data(data), pool)


@pytest.mark.parametrize("operator", ["magmax", "iso_c"])
@pytest.mark.parametrize("space", ["core", "weights"])
def test_damping_works_on_whole_matrices(pool: ModelPool, operator: str, space: str) -> None:
    (tensor,) = (t for t in lower(recipe_of(operator, pool, space=space), pool).tensors if t.name == f"{DOWN}.weight")
    factors = np.linspace(0.1, 1.0, 24)
    damped = replace(tensor, damping=Damping(base="base", factors=Factors.of(factors, 1)))
    (_, whole), (_, got) = execute(MergePlan(tensors=(tensor, damped)), pool)
    base = pool.tensor("base", tensor.name)
    torch.testing.assert_close(got, base + (whole - base) * torch.from_numpy(factors).float())
