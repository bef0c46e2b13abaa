"""The executor against the oracle, for operators that trim, drop, elect or select."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.executor import execute
from evomerge.merging.operators import lower
from evomerge.recipe import OPERATORS, Field, Operator, Preset, Recipe, options_of
from evomerge.recipe.sparse_table import SPARSE_OPERATORS

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAMES = [operator.name for operator in SPARSE_OPERATORS]
PRESETS: tuple[Preset, ...] = ("paper", "mergekit")
DIFFERENT = [
    (operator.name, preset)
    for operator in SPARSE_OPERATORS
    for preset in PRESETS
    if preset == "paper" or operator.presets["paper"] != operator.presets["mergekit"]
]

_spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
assert _spec is not None
assert _spec.loader is not None
oracle: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)


@pytest.mark.parametrize("operator", SPARSE_OPERATORS, ids=NAMES)
@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_equals_the_oracle_rounded_once(
    memory_pool: MakePool, operator: Operator, data: st.DataObject, block: int
) -> None:
    family = data.draw(oracle.families())
    recipe = data.draw(oracle.recipes(operator, tuple(family)[1:]))
    oracle.assert_equals_the_oracle(recipe, memory_pool(family), block)


@pytest.mark.parametrize("operator", SPARSE_OPERATORS, ids=NAMES)
@settings(max_examples=12, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_does_not_depend_on_the_block_size(
    memory_pool: MakePool, operator: Operator, data: st.DataObject, block: int
) -> None:
    family = data.draw(oracle.families())
    recipe = data.draw(oracle.recipes(operator, tuple(family)[1:]))
    oracle.assert_same_in_any_blocks(recipe, memory_pool(family), block)


@pytest.fixture(scope="module")
def large(memory_pool: MakePool) -> Any:
    return memory_pool(oracle.large_family(shape=(700, 400)))


@pytest.mark.parametrize(("operator", "preset"), DIFFERENT)
def test_one_ulp_on_one_element_in_a_thousand(large: Any, operator: str, preset: Preset) -> None:
    table = OPERATORS[operator]
    per_source = {"weight": [0.317181, 0.541871, -0.284529], "density": [0.271828, 0.618034, 0.577216]}
    special = {"select_topk": 0.318309, "epsilon": 0.001202, "t": 0.000916}
    sources = ("one", "two", "three")[: table.max_sources]
    fields = {}
    for name, parameter in sorted(table.parameters.items()):
        one = special.get(name, parameter.default or 0.0)
        row = per_source.get(name, [one] * 3) if parameter.scope == "source" else [one]
        fields[name] = Field.constant(row[: len(sources)], 1)
    recipe = Recipe(
        operator=operator,
        options=options_of(table, preset),
        base="base",
        sources=sources,
        parameters=tuple(fields.items()),
        mask_seed=3,
        dtype="bfloat16",
    )
    oracle.assert_nearly_rounded(recipe, large)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
def test_a_tensor_without_elements_passes(
    memory_pool: MakePool, operator: Operator, preset: Preset, shape: tuple[int, ...]
) -> None:
    sources = ("one", "two")[: operator.max_sources]
    names = {"layers.0.mlp.empty": shape, "layers.0.mlp.w": (4, 5)}
    pool = memory_pool(
        {model: {name: torch.rand(size) for name, size in names.items()} for model in ("base", *sources)}
    )
    rows = {
        name: [0.25] * (len(sources) if parameter.scope == "source" else 1)
        for name, parameter in operator.parameters.items()
    }
    recipe = Recipe(
        operator=operator.name,
        options=options_of(operator, preset),
        base="base" if operator.needs_base else None,
        sources=sources,
        parameters=tuple((name, Field.constant(row, 1)) for name, row in sorted(rows.items())),
        dtype="float32",
    )
    merged = dict(execute(lower(recipe, pool), pool))
    assert merged["layers.0.mlp.empty"].shape == shape
    assert merged["layers.0.mlp.w"].isfinite().all()
