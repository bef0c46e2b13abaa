"""The oracle against numbers worked out by hand; sources are exact in binary, so results are exact too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from evomerge.merging import masks
from evomerge.merging.reference import reference_merge
from evomerge.recipe import OPERATORS, Field, OptionValue, Recipe, options_of

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"
BASE = [1.0, 1.0, 1.0, 1.0]
TASKS = {"one": [4.0, -2.0, 1.0, 0.0], "two": [-1.0, -4.0, -1.0, 2.0]}


def recipe_of(
    operator: str, sources: Sequence[str], values: Mapping[str, Sequence[float]], **options: OptionValue
) -> Recipe:
    table = OPERATORS[operator]
    return Recipe(
        operator=operator,
        options=options_of(table, "paper", **options),
        base="base" if table.needs_base else None,
        sources=tuple(sources),
        parameters=tuple((name, Field.constant(values[name], 1)) for name in sorted(table.parameters)),
        mask_seed=5,
        dtype="float32",
    )


def merge(
    memory_pool: MakePool, operator: str, values: Mapping[str, Sequence[float]], **options: OptionValue
) -> list[float]:
    models = {"base": BASE} | {name: [a + b for a, b in zip(BASE, x, strict=True)] for name, x in TASKS.items()}
    pool = memory_pool({model: {NAME: torch.tensor(theta)} for model, theta in models.items()})
    sources = ["one"] if operator == "slerp" else ["one", "two"]
    merged = dict(reference_merge(recipe_of(operator, sources, values, **options), pool))
    return [float(value) for value in merged[NAME]]


def plus_base(change: Sequence[float]) -> list[float]:
    return [1.0 + value for value in change]


def test_linear(memory_pool: MakePool) -> None:
    plain = merge(memory_pool, "linear", {"weight": [0.5, 1.5]}, normalize=False)
    assert plain == [0.5 * 5 + 1.5 * 0, 0.5 * -1 + 1.5 * -3, 0.5 * 2 + 0, 0.5 * 1 + 1.5 * 3]
    assert merge(memory_pool, "linear", {"weight": [0.5, 1.5]}) == [value / 2 for value in plain]
    assert merge(memory_pool, "linear", {"weight": [0.5, -0.5]}) == [2.5, 1.0, 1.0, -1.0]  # a sum of 0 counts as 1


def test_task_arithmetic(memory_pool: MakePool) -> None:
    values = {"weight": [0.5, 1.5], "lambda": [2.0]}
    change = [0.5 * 4 - 1.5, -1.0 - 6.0, 0.5 - 1.5, 3.0]
    assert merge(memory_pool, "task_arithmetic", values) == plus_base([2 * value for value in change])
    assert merge(memory_pool, "task_arithmetic", values, normalize=True) == plus_base(change)


@pytest.mark.parametrize(
    ("weights", "options", "change"),
    [
        # elected by sums 3, -6, 0 (majority +, from + - 0 +: 2 against 1), 2
        ([1.0, 1.0], {"aggregate": "mean"}, [4, -3, 1, 2]),
        ([1.0, 1.0], {"aggregate": "sum"}, [4, -6, 1, 2]),
        ([0.5, 2.0], {"aggregate": "mean"}, [2, (-1 - 8) / 2, 0.5, 4]),
        ([0.5, 2.0], {"aggregate": "weighted_mean"}, [4, (-1 - 8) / 2.5, 1, 2]),
        # folded signs: two votes with 1, 4, 1, -2; sums 5, 2, 2, -2
        ([1.0, -1.0], {"aggregate": "mean"}, [2.5, 4, 1, -2]),
        ([1.0, -1.0], {"aggregate": "weighted_mean"}, [2.5, 4, 1, -2]),
        # a weight of zero votes and counts, yet adds nothing
        ([0.0, 1.0], {"aggregate": "mean"}, [0, -2, 0, 2]),
        # weighted ballots: 2 - 2 = 0 elects +, -1 - 8, 0.5 - 2, 4
        ([0.5, 2.0], {"vote": "weighted", "aggregate": "sum"}, [2, -9, -2, 4]),
        ([0.5, 2.0], {"vote": "weighted", "aggregate": "mean"}, [2, -4.5, -2, 4]),
        ([0.5, 2.0], {"vote": "weighted", "aggregate": "weighted_mean"}, [4, -9 / 2.5, -1, 2]),
        # ballots 4 + 1, -2 + 4, 1 + 1, -2: signed divisors 1 - 1 = 0 count as 1
        ([1.0, -1.0], {"vote": "weighted", "aggregate": "weighted_mean"}, [5, -4, 2, 2]),
    ],
)
def test_votes(
    memory_pool: MakePool, weights: list[float], options: dict[str, OptionValue], change: list[float]
) -> None:
    values = {"weight": weights, "density": [1.0, 1.0], "lambda": [1.0]}
    assert merge(memory_pool, "ties", values, **options) == pytest.approx(plus_base(change), rel=1e-15)
    assert merge(memory_pool, "dare_ties", values, **options) == pytest.approx(plus_base(change), rel=1e-15)


def test_cancelled_ballots_follow_a_negative_majority(memory_pool: MakePool) -> None:
    models = {"base": [0.0] * 3, "one": [1.0, -1.0, -2.0], "two": [-1.0, -1.0, -2.0]}
    pool = memory_pool({model: {NAME: torch.tensor(theta)} for model, theta in models.items()})
    values = {"weight": [1.0, 1.0], "density": [1.0, 1.0], "lambda": [1.0]}
    (elected,) = dict(reference_merge(recipe_of("ties", ["one", "two"], values), pool)).values()
    assert elected.tolist() == [-1.0, -1.0, -2.0]


def test_trim_keeps_the_largest(memory_pool: MakePool) -> None:
    values = {"weight": [1.0, 1.0], "density": [0.5, 0.25], "lambda": [2.0]}
    by_tensor = merge(memory_pool, "ties", values, trim="tensor", aggregate="sum")
    assert by_tensor == plus_base([8.0, -12.0, 0.0, 0.0])


def test_trim_ties_at_the_threshold(memory_pool: MakePool) -> None:
    tensors = {"base": {NAME: torch.zeros(4)}, "one": {NAME: torch.tensor([1.0, -1.0, 3.0, 1.0])}}
    values = {"weight": [1.0], "density": [0.5], "lambda": [1.0]}
    kept = {}
    for trim in ("tensor", "model"):
        (theta,) = dict(reference_merge(recipe_of("ties", ["one"], values, trim=trim), memory_pool(tensors))).values()
        kept[trim] = theta.tolist()
    assert kept == {"tensor": [1.0, 0.0, 3.0, 0.0], "model": [1.0, -1.0, 3.0, 1.0]}


def test_model_trim_ranks_over_all_tensors(memory_pool: MakePool) -> None:
    small, large = "layers.0.mlp.a", "layers.0.mlp.b"
    base = {small: torch.zeros(2), large: torch.zeros(2)}
    one = {small: torch.tensor([1.0, 2.0]), large: torch.tensor([3.0, 4.0])}
    values = {"weight": [1.0], "density": [0.5], "lambda": [1.0]}
    merged = dict(reference_merge(recipe_of("ties", ["one"], values), memory_pool({"base": base, "one": one})))
    assert {name: theta.tolist() for name, theta in merged.items()} == {small: [0.0, 0.0], large: [3.0, 4.0]}


@pytest.mark.parametrize(("rescale", "factor"), [("none", 1.0), ("inverse", 2.0), ("l1", None)])
def test_dare_rescales_what_it_keeps(memory_pool: MakePool, rescale: str, factor: float | None) -> None:
    x = torch.arange(1.0, 65.0)
    pool = memory_pool({"base": {NAME: torch.zeros(64)}, "one": {NAME: x}})
    values = {"weight": [1.0], "density": [0.5], "lambda": [1.0]}
    (theta,) = dict(reference_merge(recipe_of("dare_linear", ["one"], values, rescale=rescale), pool)).values()
    kept = torch.where(masks.keep(masks.tensor_seed(5, "one", NAME), 0.5, 0, 64).bool(), x.double(), 0.0)
    expected = kept * (float(x.sum() / kept.sum()) if factor is None else factor)
    torch.testing.assert_close(theta, expected)


def test_a_density_of_zero_means_absent(memory_pool: MakePool) -> None:
    values = {"weight": [1.0, 3.0], "density": [1.0, 0.0], "lambda": [1.0]}
    alone = plus_base(TASKS["one"])
    assert merge(memory_pool, "ties", values) == alone
    assert merge(memory_pool, "dare_ties", values, aggregate="mean") == alone
    assert merge(memory_pool, "dare_linear", values, normalize=True) == alone


def test_slerp_keeps_to_the_great_circle(memory_pool: MakePool) -> None:
    pool = memory_pool({"base": {NAME: torch.tensor([2.0, 0.0])}, "one": {NAME: torch.tensor([0.0, 2.0])}})
    (theta,) = dict(reference_merge(recipe_of("slerp", ["one"], {"t": [1 / 3]}), pool)).values()
    assert theta.tolist() == pytest.approx([2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)], abs=1e-5)


def test_slerp_of_nearly_parallel_tensors_is_linear(memory_pool: MakePool) -> None:
    pool = memory_pool({"base": {NAME: torch.tensor([1.0, 0.0])}, "one": {NAME: torch.tensor([2.0, 0.02])}})
    (theta,) = dict(reference_merge(recipe_of("slerp", ["one"], {"t": [0.25]}), pool)).values()
    assert theta.tolist() == pytest.approx([1.25, 0.005])
