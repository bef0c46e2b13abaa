"""Operators that trim, drop or select: known results, bad and degenerate input, what reaches the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from evomerge.merging.executor import execute
from evomerge.merging.keep_rules import Band, Clip, Drop, Trim
from evomerge.merging.operators import lower
from evomerge.merging.plan import Consensus, Copy, Delta, Kernel, Overlap, Vote, Winner
from evomerge.merging.reference import reference_merge
from evomerge.recipe import OPERATORS, Field, OptionValue, Preset, Recipe, options_of
from evomerge.recipe.sparse_table import SPARSE_OPERATORS

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"
NAMES = [operator.name for operator in SPARSE_OPERATORS]
PRESETS: tuple[Preset, ...] = ("paper", "mergekit")


def recipe_of(
    operator: str,
    sources: Sequence[str],
    values: Mapping[str, Sequence[float]] | None = None,
    preset: Preset = "paper",
    mask_seed: int = 5,
    **options: OptionValue,
) -> Recipe:
    """Weights, densities and lambda are 1 unless told otherwise; the rest has its default."""
    table = OPERATORS[operator]
    fields = {}
    for name, parameter in sorted(table.parameters.items()):
        one = 1.0 if name in {"weight", "density"} or parameter.default is None else parameter.default
        row = (values or {}).get(name, [one] * len(sources))
        fields[name] = Field.constant(row[: len(sources) if parameter.scope == "source" else 1], 1)
    return Recipe(
        operator=operator,
        options=options_of(table, preset, **options),
        base="base",
        sources=tuple(sources),
        parameters=tuple(fields.items()),
        mask_seed=mask_seed,
        dtype="float32",
    )


def models(memory_pool: MakePool, **changes: Sequence[Any]) -> Any:
    """A base of zeros and sources that differ from it by these changes."""
    tensors = {model: torch.tensor(change, dtype=torch.float32) for model, change in changes.items()}
    base = torch.zeros_like(next(iter(tensors.values())))
    return memory_pool({model: {NAME: theta} for model, theta in {"base": base, **tensors}.items()})


def kernel_of(recipe: Recipe, pool: Any) -> Kernel:
    return lower(recipe, pool).tensors[0].kernel


def merge(recipe: Recipe, pool: Any) -> list[float]:
    """The merged tensor, which the oracle confirms."""
    ((_, merged),) = execute(lower(recipe, pool), pool)
    ((_, expected),) = reference_merge(recipe, pool)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=0)
    values: list[float] = merged.tolist()
    return values


CHANGES = {"one": [4.0, -2.0, 1.0, 0.0, 3.0], "two": [-1.0, -4.0, -1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("magmax", {}, [4, -4, 1, 2, 3]),  # of equal ones the first
        ("magmax", {"weight": [0.25, -1.0], "lambda": [2.0]}, [2, 8, 2, -4, -6]),
        ("consensus", {"k": [1.0], "lambda_t": [1.0, 1.0]}, [3, -6, 0, 2, 0]),
        ("consensus", {"k": [2.0], "lambda_t": [0.4, 0.4]}, [0, -6, 0, 0, 6]),
        ("consensus", {"k": [1.0], "lambda_t": [0.6, 9.0]}, [3, 0, 0, 2, 6]),
        ("consensus", {"k": [3.0], "lambda_t": [0.0, 0.0]}, [0, 0, 0, 0, 0]),
        ("ram", {"epsilon": [0.0]}, [1.5, -3, 0, 2, 3]),
        ("ram", {"epsilon": [1.0]}, [4, -3, 0, 2, 3]),
        # changed alone: 1 of one's 3, 1 of two's 3; both share 2
        ("ram_plus", {"epsilon": [1.0], "r": [0.5], "alpha": [1.0]}, [6, -3, 0, 3, 3]),
        ("ram_plus", {"epsilon": [1.0], "r": [0.5], "alpha": [0.5]}, [5, -3, 0, 2.5, 3]),
    ],
)
def test_known_results(
    memory_pool: MakePool, operator: str, values: dict[str, list[float]], expected: list[float]
) -> None:
    assert merge(recipe_of(operator, ("one", "two"), values), models(memory_pool, **CHANGES)) == expected


def test_nearswap_moves_by_at_most_t(memory_pool: MakePool) -> None:
    pool = models(memory_pool, one=[0.3, -0.2, 0.05, 0.0, -0.01])
    assert merge(recipe_of("nearswap", ("one",), {"t": [0.125]}), pool) == pytest.approx(
        [0.125, -0.125, 0.05, 0, -0.01]
    )
    assert kernel_of(recipe_of("nearswap", ("one",), {"t": [0.0]}), pool) == Copy(source="base")


def test_breadcrumbs_keep_neither_the_largest_nor_the_smallest(memory_pool: MakePool) -> None:
    pool = models(memory_pool, one=[5.0, -8.0, 1.0, 7.0, -2.0, 3.0, 6.0, 4.0, -10.0, 9.0])

    def kept(density: float, gamma: float) -> list[int]:
        merged = merge(recipe_of("breadcrumbs", ("one",), {"density": [density], "gamma": [gamma]}), pool)
        return sorted(int(abs(value)) for value in merged if value)

    assert kept(0.4, 0.2) == [5, 6, 7, 8]
    assert kept(0.4, 0.0) == [7, 8, 9, 10]
    assert kept(0.4, 0.9) == [1, 2, 3, 4]  # fewer outliers go, so that the density is kept
    assert kept(0.09, 0.0) == []
    assert kept(1.0, 0.5) == [*range(1, 11)]


def test_breadcrumbs_break_ties_by_place(memory_pool: MakePool) -> None:
    pool = models(memory_pool, one=[1.0, -1.0, 1.0, -1.0, 1.0])
    recipe = recipe_of("breadcrumbs", ("one",), {"density": [0.4], "gamma": [0.2]})
    assert merge(recipe, pool) == [0.0, -1.0, 1.0, 0.0, 0.0]
    assert kernel_of(recipe, pool) == Delta(
        base="base",
        terms=(kernel_terms(recipe, pool)[0],),
        divisor=1.0,
        scale=1.0,
    )
    assert kernel_terms(recipe, pool)[0].keep == Band(
        inner=Trim(threshold=1.0, last_tie=2), outer=Trim(threshold=1.0, last_tie=0)
    )


def kernel_terms(recipe: Recipe, pool: Any) -> tuple[Any, ...]:
    kernel = kernel_of(recipe, pool)
    assert isinstance(kernel, Delta | Vote | Winner | Overlap | Consensus)
    return kernel.terms


def test_exclusive_owners_are_those_who_changed_it_most(memory_pool: MakePool) -> None:
    """Relative to their own changes: two's are ten times larger throughout, and do not matter more for it."""
    pool = models(memory_pool, one=[4.0, 3.0, 2.0, 1.0, 0.0], two=[10.0, 20.0, 40.0, 30.0, 5.0])
    assert merge(recipe_of("exclusive", ("one", "two")), pool) == [4, 3, 40, 30, 5]
    assert merge(recipe_of("exclusive", ("one", "two"), {"density": [0.2, 0.4]}), pool) == [4, 0, 40, 30, 0]
    assert merge(recipe_of("exclusive", ("two", "one")), pool) == [4, 3, 40, 30, 5]
    assert merge(recipe_of("exclusive", ("one", "two"), {"weight": [0.0, 1.0]}), pool) == [10, 20, 40, 30, 5]


def test_exclusive_ties_go_to_the_first(memory_pool: MakePool) -> None:
    pool = models(memory_pool, one=[1.0, 2.0], two=[-1.0, -2.0])
    assert merge(recipe_of("exclusive", ("one", "two")), pool) == [1, 2]
    assert merge(recipe_of("exclusive", ("two", "one")), pool) == [-1, -2]


def test_sce_selects_weighs_and_erases(memory_pool: MakePool) -> None:
    pool = models(memory_pool, one=[3.0, 1.0, -2.0, 0.0], two=[1.0, 1.0, 2.5, 0.0])
    # energies 14 and 8.25 of 4; elected + + + +
    w = 14 / (14 + 8.25)
    assert merge(recipe_of("sce", ("one", "two")), pool) == pytest.approx([3 * w + 1 - w, 1, 2.5, 0])
    # variances 1, 0, 5.06, 0: of the two that are not 0, one is selected
    assert merge(recipe_of("sce", ("one", "two"), {"select_topk": [0.5]}), pool) == [0, 0, 2.5, 0]
    assert kernel_of(recipe_of("sce", ("one", "two"), {"select_topk": [0.4]}), pool) == Copy(source="base")


def test_sce_floor_makes_small_changes_count_alike(memory_pool: MakePool) -> None:
    pool = models(memory_pool, one=[3e-4], two=[1e-4])
    relative, floored = (merge(recipe_of("sce", ("one", "two"), floor=floor), pool) for floor in (False, True))
    assert relative == pytest.approx([2.8e-4])
    assert floored == pytest.approx([2e-4])


def test_sce_floor_shortens_what_a_weak_source_changed_alone(memory_pool: MakePool) -> None:
    pool = models(memory_pool, one=[1000.0, 0.0], two=[0.0, 0.01])
    relative, floored = (merge(recipe_of("sce", ("one", "two"), floor=floor), pool) for floor in (False, True))
    assert relative == pytest.approx([1000, 0.01])
    assert floored == pytest.approx([1000, 0.01 * 1e-10 / 1e-6])


@pytest.mark.parametrize(
    ("fence", "kept"), [(-1.0, [1, 1, 1, 1]), (0.0, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1]), (2, [0, 0, 0, 1])]
)
def test_fusion_takes_important_rows(memory_pool: MakePool, fence: float, kept: list[int]) -> None:
    """Rows whose softmax does not move are not important, however large the change is."""
    rows = torch.tensor([[1.0, 1, 1, 1], [0.1, -0.1, 0.1, -0.1], [0.4, -0.4, 0.4, -0.4], [1, -1, 1, -1]])
    pool = models(memory_pool, one=rows.tolist())
    merged = merge(recipe_of("fusion", ("one",), {"fence": [fence]}), pool)
    assert merged == (rows * torch.tensor(kept)[:, None]).tolist()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("operator", NAMES)
def test_sources_equal_to_the_base_give_the_base(memory_pool: MakePool, operator: str, preset: Preset) -> None:
    theta = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    pool = memory_pool({model: {NAME: theta} for model in ("base", "one", "two")})
    sources = ("one", "two")[: OPERATORS[operator].max_sources]
    halves = {name: [0.5, 0.5] for name in ("density", "select_topk", "k", "t")}
    ((_, merged),) = execute(lower(recipe_of(operator, sources, halves, preset), pool), pool)
    assert torch.equal(merged, theta)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("operator", [name for name in NAMES if name not in {"consensus", "fusion", "nearswap", "ram"}])
def test_one_whole_source_is_copied(memory_pool: MakePool, operator: str, preset: Preset) -> None:
    recipe = recipe_of(operator, ("one",), {"k": [1.0]}, preset)
    kernel = kernel_of(recipe, models(memory_pool, one=[1.0, 2.0]))
    assert kernel == Copy(source="one") or operator == "ram_plus"


@pytest.mark.parametrize("operator", ["breadcrumbs", "dare_linear", "della_linear"])
def test_where_nothing_is_dropped_it_is_task_arithmetic(memory_pool: MakePool, operator: str) -> None:
    pool, values = models(memory_pool, **CHANGES), {"weight": [0.7, -0.2], "lambda": [0.9]}
    recipe = recipe_of(operator, ("one", "two"), values)
    assert kernel_of(recipe, pool) == kernel_of(recipe_of("task_arithmetic", ("one", "two"), values), pool)


@pytest.mark.parametrize("operator", ["breadcrumbs_ties", "dare_ties", "della"])
def test_where_nothing_is_dropped_it_is_an_election(memory_pool: MakePool, operator: str) -> None:
    pool, values = models(memory_pool, **CHANGES), {"weight": [0.7, -0.2], "lambda": [0.9]}
    recipe = recipe_of(operator, ("one", "two"), values)
    assert kernel_of(recipe, pool) == kernel_of(recipe_of("ties", ("one", "two"), values), pool)


def test_without_outliers_breadcrumbs_trim(memory_pool: MakePool) -> None:
    pool, values = models(memory_pool, **CHANGES), {"density": [0.4, 0.6], "gamma": [0.0, 0.0]}
    ties = recipe_of("ties", ("one", "two"), values, trim="tensor")
    assert kernel_of(recipe_of("breadcrumbs_ties", ("one", "two"), values), pool) == kernel_of(ties, pool)


def test_one_source_outweighs_nothing(memory_pool: MakePool) -> None:
    pool = models(memory_pool, one=[1.0, 0.0])
    assert merge(recipe_of("consensus", ("one",), {"k": [1.0]}), pool) == [1, 0]
    assert merge(recipe_of("consensus", ("one",), {"k": [2.0]}), pool) == [0, 0]
    assert merge(recipe_of("ram", ("one",)), pool) == [1, 0]
    assert merge(recipe_of("ram_plus", ("one",)), pool) == [1, 0]
    assert kernel_of(recipe_of("sce", ("one",), {"select_topk": [0.9]}), pool) == Copy(source="base")


@pytest.mark.parametrize("operator", [name for name in NAMES if "density" in OPERATORS[name].parameters])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_density_of_zero_is_absence(memory_pool: MakePool, operator: str, preset: Preset) -> None:
    pool = models(memory_pool, **CHANGES)
    assert kernel_of(recipe_of(operator, ("one", "two"), {"density": [0, 0]}, preset), pool) == Copy(source="base")
    assert kernel_of(recipe_of(operator, ("one", "two"), {"density": [0, 1]}, preset), pool) == Copy(source="two")


@pytest.mark.parametrize("operator", [name for name in NAMES if "lambda" in OPERATORS[name].parameters])
def test_a_scale_of_zero_gives_the_base(memory_pool: MakePool, operator: str) -> None:
    pool = models(memory_pool, **CHANGES)
    assert kernel_of(recipe_of(operator, ("one", "two"), {"lambda": [0.0]}), pool) == Copy(source="base")


@pytest.mark.parametrize("aggregate", ["mean", "weighted_mean", "sum"])
@pytest.mark.parametrize("vote", ["unweighted", "weighted"])
@pytest.mark.parametrize("operator", ["breadcrumbs_ties", "della", "dare_ties"])
def test_weights_of_both_signs_stay_finite(memory_pool: MakePool, operator: str, vote: str, aggregate: str) -> None:
    pool = models(memory_pool, one=[1.0, -1.0, 0.0, 2.0], two=[1.0, 1.0, 0.0, -2.0])
    values = {"weight": [1.0, -1.0], "density": [0.9, 0.9]}
    merged = merge(recipe_of(operator, ("one", "two"), values, vote=vote, aggregate=aggregate), pool)
    assert all(math.isfinite(value) for value in merged)
    assert max(map(abs, merged)) <= 2 * 2 / (0.9 - 0.1) / 0.5


def test_sources_and_tensors_have_masks_of_their_own(memory_pool: MakePool) -> None:
    pool = models(memory_pool, **CHANGES)
    terms = kernel_terms(recipe_of("della", ("one", "two"), {"density": [0.5, 0.5]}), pool)
    assert len({term.keep.seed for term in terms}) == 2
    dropped = kernel_terms(recipe_of("dare_ties", ("one", "two"), {"density": [0.5, 0.5]}), pool)
    assert [term.keep for term in dropped] == [Drop(seed=term.keep.seed, density=0.5) for term in terms]


def test_a_clip_is_an_fp32_number(memory_pool: MakePool) -> None:
    (term,) = kernel_terms(recipe_of("nearswap", ("one",), {"t": [0.1]}), models(memory_pool, one=[1.0]))
    assert term.keep == Clip(limit=float(torch.tensor(0.1)))
