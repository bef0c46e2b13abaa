"""Merges whose result is known beforehand, on real checkpoints, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from evomerge.merging import masks
from evomerge.merging.executor import execute
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.recipe import OPERATORS, Field, OptionValue, Preset, Recipe, options_of, uniform


@pytest.fixture(params=["bfloat16", "float16", "float32"])
def pool(make_family: Callable[..., Any], request: pytest.FixtureRequest) -> ModelPool:
    family = make_family(dtype=request.param)
    return ModelPool.open(family.base, family.experts)


def recipe_of(
    pool: ModelPool,
    operator: str,
    values: Mapping[str, Sequence[float]],
    preset: Preset = "paper",
    *,
    sources: tuple[str, ...] = ("one", "two"),
    mask_seed: int = 0,
    **options: OptionValue,
) -> Recipe:
    table = OPERATORS[operator]
    full = {"density": [1.0] * len(sources), "lambda": [1.0], **values}
    return Recipe(
        operator=operator,
        options=options_of(table, preset, **options),
        base=pool.base if table.needs_base else None,
        sources=sources,
        parameters=tuple((name, Field.constant(full[name], pool.layers)) for name in sorted(table.parameters)),
        mask_seed=mask_seed,
        dtype=pool.dtype,
    )


def merge(recipe: Recipe, pool: ModelPool) -> dict[str, torch.Tensor]:
    return dict(execute(lower(recipe, pool), pool))


def assert_same(merged: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert merged.keys() == other.keys()
    for name, values in merged.items():
        assert values.dtype == other[name].dtype
        assert values.view(torch.uint8).equal(other[name].view(torch.uint8)), name


def model_of(pool: ModelPool, model: str) -> dict[str, torch.Tensor]:
    return {spec.name: pool.tensor(model, spec.name).contiguous() for spec in pool.specs}


@pytest.mark.parametrize("operator", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
def test_zero_weights_give_the_base(pool: ModelPool, operator: str, preset: Preset) -> None:
    values = {"weight": [0.0, 0.0], "density": [0.3, 0.3]}
    assert_same(merge(recipe_of(pool, operator, values, preset), pool), model_of(pool, "base"))


_SPHERICAL = ["nuslerp", "nuslerp_delta", "multislerp", "multislerp_delta", "karcher", "karcher_delta"]


@pytest.mark.parametrize("operator", ["linear", "task_arithmetic", "dare_linear", *_SPHERICAL])
def test_one_hot_weights_give_the_expert(pool: ModelPool, operator: str) -> None:
    assert_same(merge(recipe_of(pool, operator, {"weight": [0.0, 1.0]}), pool), model_of(pool, "two"))


@pytest.mark.parametrize("operator", ["ties", "dare_ties"])
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
def test_the_only_source_gives_the_expert(pool: ModelPool, operator: str, preset: Preset) -> None:
    recipe = recipe_of(pool, operator, {"weight": [1.0]}, preset, sources=("two",))
    assert_same(merge(recipe, pool), model_of(pool, "two"))


@pytest.mark.parametrize(("t", "model"), [(0.0, "base"), (1.0, "one")])
def test_slerp_ends_are_the_models(pool: ModelPool, t: float, model: str) -> None:
    assert_same(merge(recipe_of(pool, "slerp", {"t": [t]}, sources=("one",)), pool), model_of(pool, model))


def test_the_uniform_average_of_one_model_is_that_model(pool: ModelPool) -> None:
    assert_same(merge(uniform(["base"], layers=pool.layers, dtype=pool.dtype), pool), model_of(pool, "base"))


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_untrimmed_ties_of_one_expert_is_task_arithmetic(pool: ModelPool, aggregate: str) -> None:
    values = {"weight": [0.7], "lambda": [0.9]}
    ties = recipe_of(pool, "ties", values, sources=("one",), aggregate=aggregate)
    assert_same(merge(ties, pool), merge(recipe_of(pool, "task_arithmetic", values, sources=("one",)), pool))


def test_full_density_dare_is_task_arithmetic(pool: ModelPool) -> None:
    values = {"weight": [0.7, -0.2], "lambda": [0.9]}
    dare, plain = (merge(recipe_of(pool, operator, values), pool) for operator in ("dare_linear", "task_arithmetic"))
    assert_same(dare, plain)


def test_untrimmed_ties_of_agreeing_experts_is_their_mean(make_family: Callable[..., Any]) -> None:
    family = make_family(dtype="float32")
    pool = ModelPool.open(family.base, {"one": family.experts["one"], "two": family.experts["one"]})
    ties = recipe_of(pool, "ties", {"weight": [1.0, 1.0]})
    plain = recipe_of(pool, "task_arithmetic", {"weight": [0.5, 0.5]})
    assert_same(merge(ties, pool), merge(plain, pool))


def test_dare_is_task_arithmetic_on_average(make_family: Callable[..., Any]) -> None:
    family = make_family(dtype="float32")
    pool = ModelPool.open(family.base, family.experts)
    values, draws, density = {"weight": [0.6, 0.3]}, 200, 0.4
    target = merge(recipe_of(pool, "task_arithmetic", values), pool)
    name = "model.layers.1.mlp.up_proj.weight"
    sparse = {**values, "density": [density, density]}
    recipes = [recipe_of(pool, "dare_linear", sparse, mask_seed=seed) for seed in range(draws)]
    mean = torch.stack([merge(recipe, pool)[name] for recipe in recipes]).double().mean(0)
    base = pool.tensor("base", name).double()
    changes = [w * (pool.tensor(m, name).double() - base) for w, m in zip(values["weight"], pool.experts, strict=True)]
    deviation = torch.stack([(1 / density - 1) * change**2 for change in changes]).sum(0).div(draws).sqrt()
    scores = (mean - target[name].double()) / deviation
    assert float(scores.abs().max()) < 5
    assert abs(float(scores.square().mean()) - 1) < 0.3


def test_dare_masks_are_those_of_the_recipe(make_family: Callable[..., Any]) -> None:
    family = make_family(dtype="float32")
    pool = ModelPool.open(family.base, family.experts)
    recipe = recipe_of(pool, "dare_linear", {"weight": [1.0], "density": [0.5]}, sources=("one",), mask_seed=4)
    for name, values in merge(recipe, pool).items():
        kept = masks.keep(masks.tensor_seed(4, "one", name), 0.5, 0, values.numel()).bool().view(values.shape)
        assert torch.equal(values[~kept], pool.tensor("base", name)[~kept])
        assert bool((values[kept] != pool.tensor("base", name)[kept]).any()) or not kept.any()
