"""AIM on top of every operator: less change where the base uses its inputs most."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from evomerge.errors import MergeError
from evomerge.merging.calibrated import Calibration, statistics_folder
from evomerge.merging.executor import execute
from evomerge.merging.operators import lower
from evomerge.merging.plan import Copy, Damping, Delta, MergePlan
from evomerge.recipe import OPERATORS, Field, Operator, Recipe, options_of

MakePool = Callable[..., Any]
NAME = "layers.0.mlp.up_proj.weight"
NORM = "layers.0.norm.weight"
WITH_BASE = {name: operator for name, operator in OPERATORS.items() if operator.needs_base}

_spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
assert _spec is not None
assert _spec.loader is not None
oracle: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)


def with_importance(pool: Any, means: Mapping[str, Any]) -> Any:
    """The pool with a base whose inputs were measured."""
    texts = {"base": Path("text.txt")}
    pool = replace(pool, calibration=Calibration(texts=texts, tokens=9, contents={"base": "d"}))
    folder = statistics_folder(pool, "base", "importance")
    folder.mkdir(parents=True)
    tensors = {name: torch.as_tensor(values, dtype=torch.float64) for name, values in means.items()}
    save_file(tensors, folder / "0000.safetensors", metadata={"inputs": json.dumps({name: name for name in means})})
    return pool


def arithmetic(omega: float, weights: tuple[float, ...] = (1.0, 1.0), scale: float = 1.0) -> Recipe:
    values = {"lambda": [scale], "omega": [omega], "weight": weights}
    return Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("one", "two"),
        parameters=tuple((name, Field.constant(row, 1)) for name, row in values.items()),
        dtype="float32",
    )


@pytest.fixture
def pool(memory_pool: MakePool) -> Any:
    """Two experts over a base of zeros, whose second input is the strongest and whose third is never used."""
    changes = {"base": 0.0, "one": 1.0, "two": 2.0}
    tensors = {model: {NAME: torch.full((2, 3), x), NORM: torch.full((3,), x)} for model, x in changes.items()}
    return with_importance(memory_pool(tensors), {NAME: [1.0, 4.0, 0.0]})


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("operator", WITH_BASE.values(), ids=list(WITH_BASE))
@settings(max_examples=6, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_equals_the_oracle_rounded_once(
    memory_pool: MakePool, operator: Operator, model_type: str, data: st.DataObject, block: int
) -> None:
    family = data.draw(oracle.families())
    recipe = data.draw(oracle.recipes(operator, tuple(family)[1:]))
    if operator.name.startswith("karcher"):  # as for the operator alone
        rows = [row for _, rows in recipe.parameter("weight").by_role() for row in rows]
        assume(all(abs(sum(row)) > 0.2 * sum(map(abs, row)) for row in rows))
    omega = data.draw(st.floats(0, 1))
    parameters = sorted([*recipe.parameters, ("omega", Field.constant([omega], 1))])
    recipe = replace(recipe, parameters=tuple(parameters))
    side = 0 if model_type == "gpt2" else 1
    shapes = {name: theta.shape for name, theta in family["base"].items() if theta.ndim == 2}
    rng = np.random.default_rng(len(shapes))
    pool = with_importance(
        memory_pool(family, model_type), {name: rng.random(shape[side]) for name, shape in shapes.items()}
    )
    oracle.assert_equals_the_oracle(recipe, pool, block)
    oracle.assert_same_in_any_blocks(recipe, pool, block)


def test_strong_inputs_keep_the_base(pool: Any) -> None:
    merged = dict(execute(lower(arithmetic(0.2), pool), pool))
    assert merged[NAME].tolist() == pytest.approx(np.tile([3 * 0.8, 3 * 0.2, 3], (2, 1)))
    assert merged[NORM].tolist() == [3.0, 3.0, 3.0]


def test_inputs_may_come_first(memory_pool: MakePool) -> None:
    tensors = {model: {NAME: torch.full((2, 2), x)} for model, x in {"base": 0.0, "one": 1.0, "two": 2.0}.items()}
    pool = with_importance(memory_pool(tensors, "gpt2"), {NAME: [1.0, 2.0]})
    ((_, merged),) = execute(lower(arithmetic(0.5), pool), pool)
    assert merged.tolist() == [[2.25, 2.25], [1.5, 1.5]]


def test_one_is_nothing(pool: Any) -> None:
    recipe = arithmetic(1.0)
    plain = replace(recipe, parameters=tuple(pair for pair in recipe.parameters if pair[0] != "omega"))
    assert recipe == plain
    assert lower(recipe, replace(pool, calibration=None)) == lower(plain, pool)


def test_copies_of_an_expert_are_damped_and_those_of_the_base_stay(pool: Any) -> None:
    norm, expert = sorted(lower(arithmetic(0.5, (1.0, 0.0)), pool).tensors, key=lambda tensor: tensor.name)[::-1]
    assert norm.kernel == Copy(source="one")
    assert isinstance(expert.kernel, Delta)
    assert isinstance(expert.damping, Damping)
    assert expert.sources == ("base", "one")
    ((_, merged),) = execute(MergePlan(tensors=(expert,)), pool)
    assert merged.tolist() == np.tile([0.875, 0.5, 1.0], (2, 1)).tolist()
    assert {tensor.kernel for tensor in lower(arithmetic(0.5, scale=0.0), pool).tensors} == {Copy(source="base")}


def test_another_damping_is_another_tensor(pool: Any) -> None:
    assert lower(arithmetic(0.5), pool).changed(lower(arithmetic(0.6), pool)) == {NAME}


def test_a_base_whose_inputs_are_all_zero_is_not_spared(memory_pool: MakePool) -> None:
    tensors = {model: {NAME: torch.full((2, 2), x)} for model, x in {"base": 0.0, "one": 1.0, "two": 2.0}.items()}
    pool = with_importance(memory_pool(tensors), {NAME: [0.0, 0.0]})
    assert all(tensor.damping is None for tensor in lower(arithmetic(0.5), pool).tensors)


def test_no_calibration_is_refused(pool: Any) -> None:
    with pytest.raises(MergeError, match=r"expected a calibration text that 'base' can be run over.*pool\.calibration"):
        lower(arithmetic(0.5), replace(pool, calibration=None))
    with pytest.raises(MergeError, match="expected what was measured"):
        lower(arithmetic(0.5), replace(pool, calibration=replace(pool.calibration, tokens=8)))


def test_statistics_that_do_not_fit_are_refused(memory_pool: MakePool) -> None:
    tensors = {model: {NAME: torch.full((2, 3), x)} for model, x in {"base": 0.0, "one": 1.0, "two": 2.0}.items()}
    with pytest.raises(MergeError, match=r"one statistic for each input of a matrix \[2, 3\]; got 2"):
        lower(arithmetic(0.5), with_importance(memory_pool(tensors), {NAME: [1.0, 2.0]}))
