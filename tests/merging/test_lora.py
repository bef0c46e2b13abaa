"""Adapters written by hand, in PEFT's format, against the dense formula `W + s B A`."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import ConfigError, PoolError
from evomerge.merging.adapters import export_adapter
from evomerge.merging.executor import execute
from evomerge.merging.lora import Adapter
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.merging.reference import reference_merge
from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform

MakeFamily = Callable[..., Any]
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"
"""Modules `[16, 16]` and `[16, 24]`."""


def factors(module: str, rank: int, shape: tuple[int, int], seed: int, prefix: str = "base_model.model.") -> Any:
    """A and B of a map from `shape[1]` to `shape[0]`."""
    random = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}{module}.lora_A.weight": torch.randn(rank, shape[1], generator=random).bfloat16(),
        f"{prefix}{module}.lora_B.weight": torch.randn(shape[0], rank, generator=random).bfloat16() * 0.01,
    }


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    full = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": False, **config}
    (folder / "adapter_config.json").write_text(json.dumps(full))
    return folder


def dense(folder: Path, module: str, scale: float) -> torch.Tensor:
    """`s B A` in fp64."""
    held = load_file(folder / "adapter_model.safetensors")
    a, b = (held[f"base_model.model.{module}.lora_{factor}.weight"].double() for factor in "AB")
    product: torch.Tensor = scale * b @ a
    return product


@pytest.fixture
def base(make_family: MakeFamily) -> Path:
    folder: Path = make_family(experts=()).base
    return folder


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """Two adapters of ranks 4 and 2; `one` on two modules, `two` on one of them."""
    both = {**factors(Q, 4, (16, 16), 0), **factors(DOWN, 4, (16, 24), 1)}
    return {
        "one": write_adapter(tmp_path / "one", both),
        "two": write_adapter(tmp_path / "two", factors(Q, 2, (16, 16), 2), r=2, lora_alpha=3),
    }


@pytest.fixture
def pool(base: Path, adapters: dict[str, Path]) -> ModelPool:
    return ModelPool.open(base, adapters)


def recipe_of(operator: str, pool: ModelPool, *, sources: tuple[str, ...] = ("one", "two"), **values: Any) -> Recipe:
    table = OPERATORS[operator]
    full = {"weight": [0.4, 0.7], "lambda": [0.9], "density": [0.5, 0.8], **values}
    fields = {name: v if isinstance(v, Field) else Field.constant(v, pool.layers) for name, v in full.items()}
    return Recipe(
        operator=operator,
        options=options_of(table, "paper"),
        base=pool.base if table.needs_base else None,
        sources=sources,
        parameters=tuple((name, fields[name]) for name in sorted(table.parameters)),
        dtype=pool.dtype,
    )


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 8 / 4),
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"lora_alpha": 1.5}, 1.5 / 4),
        ({"alpha_pattern": {"q_proj": 2}}, 2 / 4),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 2}}, 8 / 4),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn.q_proj": 2}, "use_rslora": True}, 2 / math.sqrt(4)),
        ({"r": 99, "rank_pattern": {"q_proj": 4}}, 8 / 4),  # the rank is that of the factors
    ],
)
def test_the_task_vector_is_the_dense_formula(base: Path, tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    folder = write_adapter(tmp_path / "a", factors(Q, 4, (16, 16), 0), **config)
    pool = ModelPool.open(base, {"one": folder})
    stored, adapted = (pool.tensor(model, f"{Q}.weight") for model in ("base", "one"))
    assert (stored.dtype, adapted.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(adapted.double() - stored.double(), dense(folder, Q, scale), rtol=0, atol=1e-8)


def test_untouched_weights_are_the_bases_own(pool: ModelPool) -> None:
    assert torch.equal(pool.tensor("two", f"{DOWN}.weight"), pool.tensor("base", f"{DOWN}.weight"))
    assert pool.tensor("two", f"{DOWN}.weight").dtype == torch.bfloat16


@pytest.mark.parametrize("operator", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_every_operator_takes_adapters(pool: ModelPool, operator: str) -> None:
    recipe = recipe_of(operator, pool)
    wanted = dict(reference_merge(recipe, pool))
    for name, got in execute(lower(recipe, pool), pool):
        torch.testing.assert_close(got.double(), wanted[name], rtol=2**-8, atol=1e-7)


def test_one_hot_is_the_merged_adapter_rounded_once(pool: ModelPool, adapters: dict[str, Path]) -> None:
    merged = dict(execute(lower(uniform(["one"], layers=pool.layers, dtype="bfloat16"), pool), pool))
    for module in (Q, DOWN):
        exact = pool.tensor("base", f"{module}.weight").double() + dense(adapters["one"], module, 2.0)
        assert torch.equal(merged[f"{module}.weight"], exact.float().bfloat16())


def test_weights_that_are_stored_whole_replace_the_bases(base: Path, tmp_path: Path) -> None:
    norm, head = torch.full((16,), 2.0), torch.randn(48, 16)
    whole = {"base_model.model.model.norm.weight": norm, "base_model.model.lm_head.modules_to_save.weight": head}
    folder = write_adapter(tmp_path / "a", {**factors(Q, 4, (16, 16), 0), **whole}, modules_to_save=["norm", "lm_head"])
    pool = ModelPool.open(base, {"one": folder})
    assert torch.equal(pool.tensor("one", "model.norm.weight"), norm)
    assert torch.equal(pool.tensor("one", "lm_head.weight"), head)


def test_a_copy_of_the_bases_weight_is_no_weight_of_its_own(base: Path, tmp_path: Path) -> None:
    copied = {"base_model.model.lm_head.base_layer.weight": load_file(base / "model.safetensors")["lm_head.weight"]}
    tensors = {**factors("lm_head", 4, (48, 16), 0), **copied}  # what PEFT writes when the head is adapted
    pool = ModelPool.open(base, {"one": write_adapter(tmp_path / "a", tensors)})
    change = pool.tensor("one", "lm_head.weight").double() - pool.tensor("base", "lm_head.weight").double()
    torch.testing.assert_close(change, dense(tmp_path / "a", "lm_head", 2.0), rtol=0, atol=1e-8)
    recipe = recipe_of("task_arithmetic", pool, sources=("one",), weight=[0.5])
    export_adapter(lower(recipe, pool), pool, tmp_path / "merged")


def test_transposed_modules_and_embeddings(make_family: MakeFamily, tmp_path: Path) -> None:
    base = make_family(kind="gpt2", experts=(), tied=True).base
    module = "transformer.h.1.attn.c_attn"  # a Conv1D of shape [16, 48]
    position = {
        "base_model.model.transformer.wpe.lora_embedding_A": torch.randn(4, 32),
        "base_model.model.transformer.wpe.lora_embedding_B": torch.randn(16, 4),
    }
    tensors = {**factors(module, 4, (48, 16), 0), **position}
    folder = write_adapter(tmp_path / "a", tensors, fan_in_fan_out=True)
    pool = ModelPool.open(base, {"one": folder})
    change = pool.tensor("one", f"{module}.weight") - pool.tensor("base", f"{module}.weight").float()
    torch.testing.assert_close(change.double(), dense(folder, module, 2.0).T, rtol=0, atol=1e-7)
    a, b = position.values()
    change = pool.tensor("one", "transformer.wpe.weight") - pool.tensor("base", "transformer.wpe.weight").float()
    torch.testing.assert_close(change, 2 * (b @ a).T, rtol=1e-5, atol=1e-5)


def test_pickles(pool: ModelPool) -> None:
    copy = pickle.loads(pickle.dumps(pool))
    assert torch.equal(copy.tensor("one", f"{Q}.weight"), pool.tensor("one", f"{Q}.weight"))


def test_the_digest_follows_the_adapters_numbers_and_settings(pool: ModelPool, base: Path, tmp_path: Path) -> None:
    same, other = factors(Q, 2, (16, 16), 2), factors(Q, 2, (16, 16), 3)
    one = pool.folder("one")
    for number, (tensors, alpha, expected) in enumerate([(same, 3, True), (same, 4, False), (other, 3, False)]):
        two = write_adapter(tmp_path / str(number), tensors, r=2, lora_alpha=alpha)
        assert (ModelPool.open(base, {"one": one, "two": two}).digest == pool.digest) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "expected plain LoRA; got DoRA"),
        ({"peft_type": "IA3"}, 'got peft_type "IA3"'),
        ({"lora_bias": True}, "biases inside LoRA"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "LoRA on bare parameters"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "replicated layers"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which starts by changing the base"),
        ({"lora_alpha": "many"}, "expected numbers as lora_alpha"),
        ({"alpha_pattern": {"(": 3}}, "expected numbers as lora_alpha"),
        ({"lora_alpha": float("nan")}, "expected numbers as lora_alpha"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "expected numbers as lora_alpha"),
        ({"lora_alpha": 1e39}, "expected numbers as lora_alpha"),
    ],
)
def test_adapters_that_compute_something_else_are_refused(
    base: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    folder = write_adapter(tmp_path / "a", factors(Q, 4, (16, 16), 0), **config)
    with pytest.raises(PoolError, match=r"one: .*adapter_config\.json: expected") as caught:
        ModelPool.open(base, {"one": folder})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (factors(Q, 4, (16, 24), 0), rf"tensor {Q}\.weight: expected factors of a matrix \[16, 16\]"),
        (
            factors("model.layers.9.self_attn.q_proj", 4, (16, 16), 0),
            r"layers\.9.*: expected one of the base's weights",
        ),
        (dict([factors(Q, 4, (16, 16), 0).popitem()]), f"module {Q}: expected factors A of shape .*; got null and"),
        ({f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(16)}, "lora_magnitude_vector: expected one of"),
        (
            {name: values.to(torch.float8_e4m3fn) for name, values in factors(Q, 4, (16, 16), 0).items()},
            r"lora_A\.weight: expected a dtype of bfloat16, float16, float32; got float8_e4m3fn",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused_by_name(
    base: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(PoolError, match=message):
        ModelPool.open(base, {"one": write_adapter(tmp_path / "a", tensors)})


def test_lora_on_a_tied_embedding_is_refused(make_family: MakeFamily, tmp_path: Path) -> None:
    module = "base_model.model.model.embed_tokens.lora_embedding_"
    folder = write_adapter(tmp_path / "a", {f"{module}A": torch.ones(4, 48), f"{module}B": torch.ones(16, 4)})
    with pytest.raises(PoolError, match=r"embed_tokens\.weight: expected no LoRA on an embedding that is also the out"):
        ModelPool.open(make_family(tied=True, experts=()).base, {"one": folder})


def test_pickled_and_broken_adapters_are_refused(base: Path, adapters: dict[str, Path]) -> None:
    (adapters["one"] / "adapter_model.safetensors").rename(adapters["one"] / "adapter_model.bin")
    file = adapters["two"] / "adapter_model.safetensors"
    held = load_file(file)
    held[next(iter(held))][0, 0] = math.inf
    save_file(held, file)
    with pytest.raises(PoolError) as caught:
        ModelPool.open(base, adapters)
    assert "expected adapter_model.safetensors; got none; pickled weights are never read" in str(caught.value)
    assert "lora_A.weight: expected finite weights; got 1 NaN or infinite" in str(caught.value)


def test_a_broken_base_is_the_only_fault(base: Path, adapters: dict[str, Path]) -> None:
    (base / "config.json").unlink()
    with pytest.raises(PoolError, match=r"cannot be merged: 1 fault\n  base: "):
        ModelPool.open(base, adapters)


def merged_of(pool: ModelPool, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The merge in fp64, before any rounding."""
    return dict(reference_merge(recipe, pool))


@pytest.mark.parametrize("operator", ["task_arithmetic", "linear"])
def test_a_linear_merge_is_one_adapter(pool: ModelPool, base: Path, tmp_path: Path, operator: str) -> None:
    recipe = recipe_of(operator, pool)
    export_adapter(lower(recipe, pool), pool, tmp_path / "merged")
    loaded = ModelPool.open(base, {"merged": tmp_path / "merged"})
    for name, wanted in merged_of(pool, recipe).items():
        torch.testing.assert_close(loaded.tensor("merged", name).double(), wanted, rtol=1e-6, atol=1e-8)
    adapter = loaded.models["merged"]
    assert isinstance(adapter, Adapter)
    assert {change.rank for change in adapter.factors.values()} == {4 + 2}
    assert {change.scale for change in adapter.factors.values()} == {1.0}
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (6, [Q, DOWN])


def test_coefficients_may_vary_over_depth_and_role(pool: ModelPool, base: Path, tmp_path: Path) -> None:
    rows = {"attention": [[0.5, -0.3]] * 3, "mlp": [[0.0, 1.0], [0.2, 0.1], [0.9, 2.0]], "norm": [[0.0, 0.0]] * 3}
    weight = Field.of({**rows, "embed": [[0.0, 0.0]], "head": [[0.0, 0.0]]})  # type: ignore[dict-item]
    recipe = recipe_of("task_arithmetic", pool, weight=weight)
    export_adapter(lower(recipe, pool), pool, tmp_path / "merged")
    loaded = ModelPool.open(base, {"merged": tmp_path / "merged"})
    for name, wanted in merged_of(pool, recipe).items():
        torch.testing.assert_close(loaded.tensor("merged", name).double(), wanted, rtol=1e-6, atol=1e-8)


def test_what_has_no_low_rank_is_refused(pool: ModelPool, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a weighted sum .*; got a merge element by element"):
        export_adapter(lower(recipe_of("ties", pool), pool), pool, tmp_path / "merged")
    with pytest.raises(ConfigError, match="got the base alone"):
        export_adapter(lower(recipe_of("task_arithmetic", pool, weight=[0, 0]), pool), pool, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_average_that_scales_the_base_is_refused(pool: ModelPool, tmp_path: Path) -> None:
    recipe = recipe_of("linear", pool)
    recipe = Recipe.from_data({**recipe.to_data(), "options": {"normalize": False}})
    with pytest.raises(ConfigError, match=r"expected weights that add up to 1, .*; got 1\.1"):
        export_adapter(lower(recipe, pool), pool, tmp_path / "merged")


def test_full_models_and_whole_weights_are_no_adapters(make_family: MakeFamily, tmp_path: Path) -> None:
    family = make_family(experts=("one",))
    tensors = {**factors(Q, 2, (16, 16), 0), "base_model.model.model.norm.weight": torch.ones(16)}
    for expert, message in ((family.experts["one"], "got a full model"), (None, "got weights that are stored whole")):
        folder = expert or write_adapter(tmp_path / "a", tensors)
        pool = ModelPool.open(family.base, {"one": folder})
        recipe = recipe_of("task_arithmetic", pool, sources=("one",), weight=[1.0])
        with pytest.raises(ConfigError, match=f"one: .*{message}"):
            export_adapter(lower(recipe, pool), pool, tmp_path / "merged")
