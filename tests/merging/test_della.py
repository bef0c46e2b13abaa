"""DELLA: what it keeps at random, over many draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from evomerge.merging.executor import execute
from evomerge.merging.keep_rules import Prune
from evomerge.merging.operators import lower
from evomerge.merging.plan import Delta
from evomerge.recipe import OPERATORS, Field, OptionValue, Recipe, options_of

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"


def recipe_of(*, density: float, epsilon: float, mask_seed: int = 0, **options: OptionValue) -> Recipe:
    values = {"density": density, "epsilon": epsilon, "lambda": 1.0, "weight": 1.0}
    return Recipe(
        operator="della_linear",
        options=options_of(OPERATORS["della_linear"], "paper", **options),
        base="base",
        sources=("one",),
        parameters=tuple((name, Field.constant([value], 1)) for name, value in values.items()),
        mask_seed=mask_seed,
        dtype="float32",
    )


@pytest.mark.parametrize(("density", "window"), [(0.5, 0.15), (0.9, 0.1), (0.05, 0.05)])
def test_dellas_window_is_cut_to_probabilities(memory_pool: MakePool, density: float, window: float) -> None:
    kernel = lower(recipe_of(density=density, epsilon=0.15), large(memory_pool)).tensors[0].kernel
    assert isinstance(kernel, Delta)
    keep = kernel.terms[0].keep
    assert isinstance(keep, Prune)
    assert window - 4e-5 < keep.epsilon <= min(window, density, 1 - density)


def test_a_window_beyond_one_half_is_refused() -> None:
    with pytest.raises(ValueError, match=r"della_linear: epsilon must lie in \[0.0, 0.5\]; got \[0.6, 0.6\]"):
        recipe_of(density=0.5, epsilon=0.6)


def large(memory_pool: MakePool, rows: int = 40) -> Any:
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(rows, 64)
    one = torch.stack([torch.randperm(64, generator=generator) + 1.0 for _ in range(rows)])
    return memory_pool({"base": {NAME: base}, "one": {NAME: one}})


@pytest.mark.parametrize("rank", ["row", "tensor"])
def test_della_keeps_large_changes_more_often(memory_pool: MakePool, rank: str) -> None:
    pool, draws = large(memory_pool), 150
    kept = torch.zeros(40, 64)
    for seed in range(draws):
        recipe = recipe_of(density=0.5, epsilon=0.3, mask_seed=seed, rank=rank, rescale="none")
        ((_, merged),) = execute(lower(recipe, pool), pool)
        kept += merged != 0
    x = pool.tensor("one", NAME)
    shares = torch.stack([kept[x == value].mean() / draws for value in range(1, 65)])
    middle = (torch.arange(64) / 63) if rank == "row" else _middle_ranks(x)
    expected = 0.2 + 0.6 * middle
    deviation = (expected * (1 - expected) / (40 * draws)).sqrt()
    assert float(((shares - expected).abs() - 0.6 / 255).div(deviation).max()) < 4


def _middle_ranks(x: torch.Tensor) -> torch.Tensor:
    """Of the values 1 to 64, as bf16 holds them; all are as frequent."""
    return torch.stack([((x < value).sum() + (x <= value).sum()) / 2 / x.numel() for value in torch.arange(1.0, 65.0)])


@pytest.mark.parametrize("rank", ["row", "tensor"])
def test_della_is_task_arithmetic_on_average(memory_pool: MakePool, rank: str) -> None:
    pool, draws = large(memory_pool, rows=8), 300
    recipes = [recipe_of(density=0.5, epsilon=0.3, mask_seed=seed, rank=rank) for seed in range(draws)]
    mean = torch.stack([next(execute(lower(recipe, pool), pool))[1] for recipe in recipes]).double().mean(0)
    x = pool.tensor("one", NAME).double()
    scores = (mean - x) / (x * math.sqrt((1 / 0.2 - 1) / draws))  # the smallest probability is 0.2
    assert float(scores.abs().max()) < 5
    assert abs(float(((mean - x) / x).mean())) < 0.02


def test_della_restores_the_sum_of_magnitudes(memory_pool: MakePool) -> None:
    pool = large(memory_pool)
    for rank in ("row", "tensor"):
        recipe = recipe_of(density=0.4, epsilon=0.2, rank=rank, rescale="l1")
        ((_, merged),) = execute(lower(recipe, pool), pool)
        assert float(merged.abs().sum()) == pytest.approx(float(pool.tensor("one", NAME).abs().sum()), rel=1e-5)


@pytest.mark.parametrize(("density", "changed"), [(5e-324, False), (2.0**-33, False), (2.0**-5, True)])
def test_densities_below_the_finest_keep_nothing(memory_pool: MakePool, density: float, changed: bool) -> None:
    pool = large(memory_pool)
    for rescale in ("inverse", "l1", "none"):
        ((_, merged),) = execute(lower(recipe_of(density=density, epsilon=0.2, rescale=rescale), pool), pool)
        assert bool(merged.isfinite().all())
        assert bool(merged.any()) is changed
