"""Spherical operators and checkpoint averages: known results, degenerate vectors, what reaches the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.executor import execute
from evomerge.merging.operators import lower
from evomerge.merging.plan import Copy, Delta, Kernel, Linear
from evomerge.merging.reference import reference_merge
from evomerge.recipe import DEPTH_ROLES, OPERATORS, ROLES, Field, OptionValue, Recipe, options_of

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"
PAIRS = ("nuslerp", "nuslerp_delta", "multislerp", "multislerp_delta", "karcher", "karcher_delta")
ANY_NUMBER = PAIRS[2:]
ON_TASK_VECTORS = (*PAIRS[1::2], "model_stock", "metagpt")


def recipe_of(
    operator: str,
    sources: Sequence[str],
    values: Mapping[str, Sequence[float]] | None = None,
    **options: OptionValue,
) -> Recipe:
    table = OPERATORS[operator]
    full = {"weight": [1.0] * len(sources), "lambda": [1.0], **(values or {})}
    return Recipe(
        operator=operator,
        options=options_of(table, "paper", **options),
        base="base" if table.needs_base else None,
        sources=tuple(sources),
        parameters=tuple((name, Field.constant(full[name], 1)) for name in sorted(table.parameters)),
        dtype="float32",
    )


def kernel_of(recipe: Recipe, pool: Any) -> Kernel:
    return lower(recipe, pool).tensors[0].kernel


def merge(recipe: Recipe, pool: Any) -> torch.Tensor:
    """The merged tensor, which the oracle confirms."""
    ((_, merged),) = execute(lower(recipe, pool), pool)
    ((_, expected),) = reference_merge(recipe, pool)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-7)
    return merged


def models(memory_pool: MakePool, **tensors: Sequence[Any]) -> Any:
    return memory_pool({model: {NAME: torch.tensor(theta)} for model, theta in tensors.items()})


@pytest.fixture
def pool(memory_pool: MakePool) -> Any:
    generator = torch.Generator().manual_seed(0)
    names = ("base", "one", "two", "three")
    return memory_pool({model: {NAME: torch.randn(6, 5, generator=generator)} for model in names})


@pytest.mark.parametrize("operator", PAIRS)
@pytest.mark.parametrize(("weight", "model"), [((0.3, 0), "one"), ((0, 0.3), "two")])
def test_a_weight_at_an_end_is_that_source(pool: Any, operator: str, weight: Sequence[float], model: str) -> None:
    for options in [{"per": per} for per in OPERATORS[operator].options.get("per", ())] or [{}]:
        assert kernel_of(recipe_of(operator, ("one", "two"), {"weight": weight}, **options), pool) == Copy(source=model)


@pytest.mark.parametrize("operator", [*PAIRS, "model_stock", "metagpt", "metric_average", "decay_average"])
def test_one_source_is_itself(pool: Any, operator: str) -> None:
    values = {"weight": [0.7], "metric": [0.2], "power": [2.0]}
    assert kernel_of(recipe_of(operator, ("two",), values), pool) == Copy(source="two")


@pytest.mark.parametrize("operator", ON_TASK_VECTORS)
def test_a_scale_of_zero_copies_the_base(pool: Any, operator: str) -> None:
    assert kernel_of(recipe_of(operator, ("one", "two"), {"lambda": [0.0]}), pool) == Copy(source="base")


@pytest.mark.parametrize("operator", ON_TASK_VECTORS)
def test_experts_equal_to_the_base_give_the_base(memory_pool: MakePool, operator: str) -> None:
    theta = [0.5, -0.25, 2.0]
    assert (
        merge(recipe_of(operator, ("one", "two")), models(memory_pool, base=theta, one=theta, two=theta)).tolist()
        == theta
    )


@pytest.mark.parametrize("operator", [*PAIRS, "model_stock", "metagpt"])
def test_identical_experts_are_each_of_them(memory_pool: MakePool, operator: str) -> None:
    one = [0.5, -0.25, 2.0]
    merged = merge(recipe_of(operator, ("one", "two")), models(memory_pool, base=[0.5, 0.5, 0.5], one=one, two=one))
    assert merged.tolist() == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("operator", [*PAIRS, "model_stock", "metagpt"])
def test_opposite_task_vectors_are_finite(memory_pool: MakePool, operator: str) -> None:
    pool = models(memory_pool, base=[0.0, 0.0], one=[1.0, 2.0], two=[-1.0, -2.0])
    merged = merge(recipe_of(operator, ("one", "two")), pool)
    first = "karcher" in operator  # it starts at the first source, where the other pulls nowhere
    assert merged.tolist() == pytest.approx([1.0, 2.0] if first else [0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("operator", ANY_NUMBER)
def test_a_vector_of_zeros_has_no_direction(memory_pool: MakePool, operator: str) -> None:
    pool = models(memory_pool, base=[0.0, 0.0], one=[3.0, 4.0], two=[0.0, 0.0])
    merged = merge(recipe_of(operator, ("one", "two"), {"weight": [0.5, 0.5]}), pool)
    assert merged.tolist() == pytest.approx([1.5, 2.0])  # that of the other, at the mean length


@pytest.mark.parametrize("operator", PAIRS)
def test_weights_that_sum_to_zero_are_finite(pool: Any, operator: str) -> None:
    signed = [] if "karcher" in operator else [[0.5, -0.5]]
    for weight in [[0.0, 0.0], *signed]:
        assert bool(merge(recipe_of(operator, ("one", "two"), {"weight": weight}), pool).isfinite().all())


@pytest.mark.parametrize("operator", PAIRS)
def test_half_way_on_the_circle(memory_pool: MakePool, operator: str) -> None:
    pool = models(memory_pool, base=[0.0, 0.0], one=[2.0, 0.0], two=[0.0, 2.0])
    merged = merge(recipe_of(operator, ("one", "two"), {"weight": [0.5, 0.5]}), pool)
    assert merged.tolist() == pytest.approx([math.sqrt(2.0), math.sqrt(2.0)])


def test_a_third_of_the_way(memory_pool: MakePool) -> None:
    pool = models(memory_pool, base=[0.0, 0.0], one=[1.0, 0.0], two=[0.0, 1.0])
    expected = [math.cos(math.pi / 6), math.sin(math.pi / 6)]
    for operator in ("nuslerp", "nuslerp_delta", "karcher", "karcher_delta"):
        merged = merge(recipe_of(operator, ("one", "two"), {"weight": [2.0, 1.0]}), pool)
        assert merged.tolist() == pytest.approx(expected, abs=1e-6)
    for operator in ("multislerp", "multislerp_delta"):
        merged = merge(recipe_of(operator, ("one", "two"), {"weight": [2.0, 1.0]}), pool)
        assert merged.tolist() == pytest.approx([2 / math.sqrt(5), 1 / math.sqrt(5)])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
def test_a_karcher_mean_is_where_all_pulls_balance(memory_pool: MakePool, seed: int, weight: list[float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(20, generator=generator)
    tensors = {name: centre + 0.5 * torch.randn(20, generator=generator) for name in ("base", "one", "two", "three")}
    pool = memory_pool({name: {NAME: theta} for name, theta in tensors.items()})
    mean = merge(recipe_of("karcher", ("one", "two", "three"), {"weight": weight}), pool).double()
    lengths = [float(tensors[name].norm()) for name in ("one", "two", "three")]
    shares = torch.tensor(weight).double() / sum(weight)
    assert float(mean.norm()) == pytest.approx(float(shares @ torch.tensor(lengths).double()), rel=1e-5)
    unit, pull = mean / mean.norm(), torch.zeros(20).double()
    for share, name in zip(shares, ("one", "two", "three"), strict=True):
        other = tensors[name].double() / tensors[name].double().norm()
        cosine = unit @ other
        angle = torch.acos(cosine)
        pull += share * angle / torch.sin(angle) * (other - cosine * unit)
    assert float(pull.norm()) < 2e-5


@pytest.mark.parametrize("operator", ["karcher", "karcher_delta"])
def test_a_karcher_mean_takes_no_negative_weight(operator: str) -> None:
    """Where weights nearly cancel, its steps amplify rounding errors without bound."""
    with pytest.raises(ValueError, match=r"weight must lie in \[0.0, 10.0\]; got \[-2.0, 1.0625\]"):
        recipe_of(operator, ("one", "two", "three"), {"weight": [1.0, 1.0625, -2.0]})


def test_rows_and_columns_have_angles_of_their_own(memory_pool: MakePool) -> None:
    base, one, two = [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [0.0, 3.0]]
    pool = models(memory_pool, base=base, one=one, two=two)
    half = math.sqrt(0.5)
    rows = merge(recipe_of("nuslerp", ("one", "two"), per="row"), pool)
    torch.testing.assert_close(rows, torch.tensor([[half, half], [0.0, 3.0]]))
    columns = merge(recipe_of("nuslerp", ("one", "two"), per="column"), pool)
    angle = math.acos(3 / math.sqrt(10))
    second = [math.sin(angle / 2) / math.sin(angle), 6 * math.sin(angle / 2) / math.sin(angle)]
    torch.testing.assert_close(columns, torch.tensor([[half, second[0]], [0.0, second[1]]]))
    stock = merge(recipe_of("model_stock", ("one", "two"), per="row"), pool)
    torch.testing.assert_close(stock, torch.tensor([[0.0, 0.0], [0.0, 3.0]]))


def test_slices_reach_the_plan_as_factors(pool: Any) -> None:
    kernel = kernel_of(recipe_of("nuslerp", ("one", "two"), per="row"), pool)
    assert isinstance(kernel, Linear)
    assert [term.factors is not None and term.factors.run for term in kernel.terms] == [5, 5]
    kernel = kernel_of(recipe_of("nuslerp_delta", ("one", "two"), per="column"), pool)
    assert isinstance(kernel, Delta)
    assert [term.factors is not None and term.factors.run for term in kernel.terms] == [1, 1]
    whole = kernel_of(recipe_of("nuslerp_delta", ("one", "two")), pool)
    assert isinstance(whole, Delta)
    assert [term.factors for term in whole.terms] == [None, None]


def test_model_stock_follows_the_mean_angle(memory_pool: MakePool) -> None:
    pool = models(memory_pool, base=[0.0, 0.0], one=[1.0, 0.0], two=[0.5, math.sqrt(0.75)])
    kernel = kernel_of(recipe_of("model_stock", ("one", "two"), {"lambda": [0.9]}), pool)
    assert isinstance(kernel, Delta)
    assert [term.weight for term in kernel.terms] == pytest.approx([1 / 3, 1 / 3])  # t = 2 c / (1 + c) at c = 1/2
    assert kernel.scale == 0.9


def test_the_floor_of_model_stock_shortens_small_changes(memory_pool: MakePool) -> None:
    pool = models(memory_pool, base=[0.0, 0.0], one=[1e-4, 0.0], two=[1e-4, 0.0])
    free, floored = (merge(recipe_of("model_stock", ("one", "two"), floor=floor), pool) for floor in (False, True))
    assert free.tolist() == pytest.approx([1e-4, 0.0])
    assert floored.tolist() == pytest.approx([2 * 0.01 / 1.01 * 1e-4, 0.0])  # 1e-8 / 1e-6 counts as the cosine


def test_metagpt_weighs_by_squared_norms(memory_pool: MakePool) -> None:
    small, large = "layers.0.mlp.a", "layers.0.mlp.b"
    zero = torch.zeros(2)
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    pool = memory_pool(
        {"base": {small: zero, large: zero}, "one": {small: one, large: two}, "two": {small: two, large: two}}
    )
    found = {}
    for per in ("model", "tensor"):
        plan = lower(recipe_of("metagpt", ("one", "two"), per=per), pool)
        for tensor in plan.tensors:
            assert isinstance(tensor.kernel, Delta)
            found[per, tensor.name] = [term.weight for term in tensor.kernel.terms]
    assert found["model", small] == found["model", large] == pytest.approx([5 / 13, 8 / 13])
    assert found["tensor", small] == pytest.approx([1 / 5, 4 / 5])
    assert found["tensor", large] == pytest.approx([1 / 2, 1 / 2])


def test_one_layer_from_each_expert_keeps_its_bytes(memory_pool: MakePool) -> None:
    """Layer swapping: a field of ones and zeros."""
    names = [f"layers.{i}.mlp.w" for i in range(4)]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        model: {name: torch.randn(3, 3, generator=generator).bfloat16() for name in names}
        for model in ("base", "one", "two")
    }
    swap = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    field = Field.of({role: swap if role in DEPTH_ROLES else [[1.0, 0.0]] for role in ROLES})
    for operator in ("linear", "nuslerp", "multislerp", "karcher"):
        recipe = Recipe(
            operator=operator,
            options=options_of(OPERATORS[operator], "paper"),
            base=None,
            sources=("one", "two"),
            parameters=(("weight", field),),
            dtype="bfloat16",
        )
        merged = dict(execute(lower(recipe, pool := memory_pool(tensors)), pool))
        owners = [("one", "two")[row.index(1.0)] for row in swap]
        assert all(torch.equal(merged[n], tensors[owner][n]) for n, owner in zip(names, owners, strict=True))
