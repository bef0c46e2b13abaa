"""Recipes of spaces that cross genomes, on real models: the weights are those that crossing the models gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from evomerge.config import SoupConfig, SplitPointConfig, shipped_folder
from evomerge.merging.executor import execute
from evomerge.merging.gram import products_by_place
from evomerge.merging.operators import lower
from evomerge.merging.pool import ModelPool
from evomerge.recipe import Recipe
from evomerge.spaces import Genome, Models
from evomerge.spaces.soup import SoupSpace
from evomerge.spaces.split_point import SplitPointSpace

MODELS = shipped_folder("experiments") / "quickstart" / "models"


def models_of(pool: ModelPool) -> Models:
    return Models(
        base=pool.base, experts=pool.experts, layers=pool.layers, dtype=pool.dtype, products=products_by_place(pool)
    )


def merged(pool: ModelPool, recipe: Recipe) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in execute(lower(recipe, pool), pool)}


def slerp(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], left: set[str], share: float) -> Any:
    """M2N2's crossover of whole models."""
    first, second = (torch.cat([model[name].flatten() for name in sorted(one)]) for model in (one, other))
    angle = torch.acos(first @ second / (first.norm() * second.norm()))
    child = {}
    for name, weight in one.items():
        t = share if name in left else 1.0 - share
        child[name] = (torch.sin((1 - t) * angle) * weight + torch.sin(t * angle) * other[name]) / torch.sin(angle)
    return child


def test_a_grandchild_has_the_weights_that_crossing_models_gives() -> None:
    pool = ModelPool.open(MODELS / "base", {name: MODELS / name for name in ("rev", "sort", "ciph")})
    space = SplitPointSpace(SplitPointConfig(kind="split_point"), models_of(pool))
    split = 2  # embeddings and the first layer are left of it
    left = {spec.name for spec in pool.specs if spec.role == "embed" or spec.layer == 0}
    child = space.cross(space.known[0], space.known[2], split=split, share=0.35)
    grandchild = space.cross(child, space.known[1], split=split, share=0.7)
    whole = [{s.name: pool.tensor(name, s.name).double() for s in pool.specs} for name in pool.experts]
    expected = slerp(slerp(whole[0], whole[2], left, 0.35), whole[1], left, 0.7)
    found = merged(pool, space.decode(grandchild))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        limit = 0.0 if pool.dtype == "float32" else 2.0**-8
        assert torch.allclose(found[name], tensor, rtol=max(limit, 1e-5), atol=1e-5), name


def test_products_are_those_of_the_weights(make_family: Callable[..., Any]) -> None:
    family = make_family(tied=True)
    pool = ModelPool.open(family.base, family.experts)
    found = {(role, layer): torch.tensor(rows) for role, layer, rows in products_by_place(pool)}
    assert found.keys() == {(spec.role, spec.layer) for spec in pool.specs}
    for (role, layer), products in found.items():
        names = [spec.name for spec in pool.specs if (spec.role, spec.layer) == (role, layer)]
        whole = torch.stack([torch.cat([pool.tensor(m, n).double().flatten() for n in names]) for m in pool.names])
        assert torch.allclose(products.double(), whole @ whole.T, rtol=1e-6)


def test_thirty_two_checkpoints_are_averaged_in_one_pass(make_family: Callable[..., Any]) -> None:
    family = make_family(experts=tuple(f"step{number:02}" for number in range(32)))
    pool = ModelPool.open(family.base, family.experts)
    space = SoupSpace(SoupConfig(kind="soup", select=True), models_of(pool))
    shares = torch.softmax(torch.arange(32, dtype=torch.float64) / 8.0, 0)
    genome = space.start
    for number in range(32):  # a line of ancestors 32 long
        genome = space.cross(genome, space.known[number], split=0, share=1.0 - float(shares[number]))
    began = time.perf_counter()
    found = merged(pool, space.decode(genome))
    assert time.perf_counter() - began < 10.0
    weights = torch.full((32,), 1.0 / 32, dtype=torch.float64)
    for number in range(32):
        weights = weights * (1.0 - shares[number])
        weights[number] += shares[number]
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        whole = torch.stack([pool.tensor(model, name).double() for model in pool.experts])
        assert torch.allclose(found[name], torch.einsum("k,kab->ab", weights, whole), rtol=2.0**-7, atol=1e-5)


def test_a_soup_reads_what_it_takes(make_family: Callable[..., Any]) -> None:
    family = make_family(experts=("one", "two", "three"))
    pool = ModelPool.open(family.base, family.experts)
    space = SoupSpace(SoupConfig(kind="soup", select=True), models_of(pool))
    recipe = space.decode(Genome((0.5, 0.5, 0.5, 1.0, 0.0, 1.0)))
    assert {source for tensor in lower(recipe, pool).tensors for source in tensor.sources} == {"one", "three"}
