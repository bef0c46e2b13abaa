"""The executor against the oracle, on random models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import MergeError
from evomerge.merging.executor import execute, execute_into
from evomerge.merging.operators import lower
from evomerge.recipe import OPERATORS, Field, Operator, OutputDtype, Preset, Recipe, options_of
from evomerge.recipe.sparse_table import SPARSE_OPERATORS

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]

SPARSE = {operator.name for operator in SPARSE_OPERATORS}
OTHERS = {name: operator for name, operator in OPERATORS.items() if name not in SPARSE}

_spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
assert _spec is not None
assert _spec.loader is not None
oracle: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)


@pytest.mark.parametrize("operator", OTHERS.values(), ids=list(OTHERS))
@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_equals_the_oracle_rounded_once(
    memory_pool: MakePool, operator: Operator, data: st.DataObject, block: int
) -> None:
    family = data.draw(oracle.families())
    recipe = data.draw(oracle.recipes(operator, tuple(family)[1:]))
    oracle.assert_equals_the_oracle(recipe, memory_pool(family), block)


@pytest.mark.parametrize("operator", OTHERS.values(), ids=list(OTHERS))
@settings(max_examples=15, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_does_not_depend_on_the_block_size(
    memory_pool: MakePool, operator: Operator, data: st.DataObject, block: int
) -> None:
    family = data.draw(oracle.families())
    recipe = data.draw(oracle.recipes(operator, tuple(family)[1:]))
    oracle.assert_same_in_any_blocks(recipe, memory_pool(family), block)


@pytest.fixture(scope="module")
def large(memory_pool: MakePool) -> Any:
    return memory_pool(oracle.large_family())


def recipe_of(operator: str, preset: Preset = "paper", *, dtype: OutputDtype = "bfloat16") -> Recipe:
    table = OPERATORS[operator]
    sources = ("one", "two", "three")[: table.max_sources]
    values = {
        "weight": [0.317181, 0.541871, 0.284529 if operator.startswith("karcher") else -0.284529],
        "density": [0.271828, 0.618034, 0.577216],
        "lambda": [0.874551],
        "t": [0.318309],
        "s": [1.202057],
        "metric": [0.693147, 0.915966, 1.202057],
        "power": [1.618034],
    }
    return Recipe(
        operator=operator,
        options=options_of(table, preset),
        base="base" if table.needs_base else None,
        sources=sources,
        parameters=tuple((name, Field.constant(values[name][: len(sources)], 1)) for name in sorted(table.parameters)),
        mask_seed=3,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
@pytest.mark.parametrize("operator", sorted(OTHERS))
def test_one_ulp_on_one_element_in_a_thousand(large: Any, operator: str, preset: Preset, dtype: OutputDtype) -> None:
    oracle.assert_nearly_rounded(recipe_of(operator, preset, dtype=dtype), large)


def test_cancelled_ballots_follow_a_negative_majority_across_blocks(memory_pool: MakePool) -> None:
    base, x = torch.zeros(8), torch.tensor([1.0, -1, -1, -1, -1, 1, -1, -1])
    two = torch.where(torch.arange(8) == 0, -x, x)
    pool = memory_pool({m: {"layers.0.mlp.w": t} for m, t in {"base": base, "one": x, "two": two}.items()})
    recipe = Recipe(
        operator="ties",
        options=options_of(OPERATORS["ties"], "paper"),
        base="base",
        sources=("one", "two"),
        parameters=tuple(
            (name, Field.constant([1.0] * n, 1)) for name, n in [("density", 2), ("lambda", 1), ("weight", 2)]
        ),
        dtype="float32",
    )
    for block in (2, 100):
        ((_, out),) = execute(lower(recipe, pool), pool, block=block)
        assert out.tolist() == [-1.0, *x[1:].tolist()]


def test_weights_beyond_half_precision_are_clamped(memory_pool: MakePool) -> None:
    models = {"base": torch.zeros(2), "one": torch.tensor([60000.0, -60000.0]), "two": torch.tensor([60000.0, 1.0])}
    pool = memory_pool({model: {"layers.0.mlp.w": theta.half()} for model, theta in models.items()})
    recipe = Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("one", "two"),
        parameters=(("lambda", Field.constant([2.0], 1)), ("weight", Field.constant([1.0, 1.0], 1))),
        dtype="float16",
    )
    ((_, out),) = execute(lower(recipe, pool), pool)
    assert out.tolist() == [65504.0, -65504.0]


@pytest.mark.parametrize("operator", sorted(OTHERS))
@pytest.mark.parametrize("live", [torch.bfloat16, torch.float16, torch.float32])
def test_a_live_model_gets_what_an_export_holds(large: Any, operator: str, live: torch.dtype) -> None:
    plan = lower(recipe_of(operator), large)
    ((name, exported),) = execute(plan, large)
    straight = torch.nn.Parameter(torch.full(exported.shape, float("nan"), dtype=live))
    transposed = torch.full(exported.shape[::-1], float("nan"), dtype=live).t()
    strided = torch.full((exported.shape[0], 2 * exported.shape[1]), 7.0, dtype=live)
    for output in (straight, transposed, strided[:, ::2]):
        address = output.data_ptr()
        execute_into(plan, large, {name: output, "another": torch.empty(1)})
        assert torch.equal(output, exported.to(live))
        assert output.data_ptr() == address
    assert bool((strided[:, 1::2] == 7).all())


def test_writes_only_what_is_asked_for(large: Any) -> None:
    plan = lower(recipe_of("linear"), large)
    live = torch.zeros(1000, 400)
    execute_into(plan, large, {"layers.0.mlp.w": live}, only=plan.changed(plan))
    assert not live.any()
    execute_into(plan, large, {"layers.0.mlp.w": live}, only=plan.changed(None))
    assert live.any()


@pytest.mark.parametrize(
    ("outputs", "got"),
    [({}, "no tensor of that name"), ({"layers.0.mlp.w": torch.zeros(2, 3)}, r"shape \(2, 3\)")],
)
def test_a_foreign_model_is_refused(large: Any, outputs: dict[str, torch.Tensor], got: str) -> None:
    with pytest.raises(MergeError, match=rf"layers.0.mlp.w: expected shape \(1000, 400\) in the live model; got {got}"):
        execute_into(lower(recipe_of("linear"), large), large, outputs)
