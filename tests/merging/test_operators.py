from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from evomerge.errors import MergeError
from evomerge.merging.executor import execute
from evomerge.merging.keep_rules import Drop, Trim
from evomerge.merging.operators import lower
from evomerge.merging.plan import Copy, Delta, Kernel, Linear, Vote
from evomerge.recipe import OPERATORS, Field, OptionValue, Preset, Recipe, options_of, uniform

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"


@pytest.fixture
def pool(memory_pool: MakePool) -> Any:
    generator = torch.Generator().manual_seed(0)
    return memory_pool(
        {
            model: {NAME: torch.randn(4, 5, generator=generator), "layers.0.mlp.ids": torch.arange(3)}
            for model in ("base", "one", "two", "three")
        }
    )


def recipe_of(
    operator: str,
    preset: Preset = "paper",
    *,
    weight: Sequence[float] = (1.0, 1.0, 1.0),
    density: Sequence[float] = (1.0, 1.0, 1.0),
    scale: float = 1.0,
    t: float = 0.5,
    layers: int = 1,
    sources: Sequence[str] = ("one", "two", "three"),
    **options: OptionValue,
) -> Recipe:
    table = OPERATORS[operator]
    values = {"weight": weight, "density": density, "lambda": [scale], "t": [t]}
    return Recipe(
        operator=operator,
        options=options_of(table, preset, **options),
        base="base" if table.needs_base else None,
        sources=tuple(sources),
        parameters=tuple((name, Field.constant(values[name], layers)) for name in sorted(table.parameters)),
        mask_seed=9,
        dtype="float32",
    )


def kernel_of(recipe: Recipe, pool: Any) -> Kernel:
    return next(tensor.kernel for tensor in lower(recipe, pool).tensors if tensor.name == NAME)


@pytest.mark.parametrize("operator", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
def test_nothing_to_add_copies_the_base(pool: Any, operator: str, preset: Preset) -> None:
    assert kernel_of(recipe_of(operator, preset, weight=(0, 0, 0)), pool) == Copy(source="base")
    assert kernel_of(recipe_of(operator, preset, scale=0), pool) == Copy(source="base")


@pytest.mark.parametrize("operator", ["ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
def test_a_density_of_zero_is_absence(pool: Any, operator: str, preset: Preset) -> None:
    assert kernel_of(recipe_of(operator, preset, density=(0, 0, 0)), pool) == Copy(source="base")
    assert kernel_of(recipe_of(operator, preset, density=(0, 1, 0)), pool) == Copy(source="two")


@pytest.mark.parametrize(
    "recipe",
    [
        recipe_of("linear", weight=(0, 0.3, 0)),
        recipe_of("linear", weight=(0, 1, 0), normalize=False),
        recipe_of("task_arithmetic", weight=(0, 1, 0)),
        recipe_of("task_arithmetic", weight=(0, -3, 0), normalize=True),
        recipe_of("task_arithmetic", weight=(0, 4, 0), scale=0.25),
        recipe_of("ties", "mergekit", weight=(0, 0.7, 0)),
        recipe_of("slerp", t=1, sources=("two",)),
    ],
)
def test_one_whole_source_is_copied(pool: Any, recipe: Recipe) -> None:
    assert kernel_of(recipe, pool) == Copy(source="two")


def test_slerp_at_zero_copies_the_base(pool: Any) -> None:
    assert kernel_of(recipe_of("slerp", t=0, sources=("two",)), pool) == Copy(source="base")


def test_slerp_becomes_linear(pool: Any) -> None:
    kernel = kernel_of(recipe_of("slerp", t=0.25, sources=("two",)), pool)
    assert isinstance(kernel, Linear)
    a, b = (pool.tensor(model, NAME).double().reshape(-1) for model in ("base", "two"))
    angle = math.acos(float(a @ b / (a.norm() * b.norm())))
    expected = [math.sin(0.75 * angle) / math.sin(angle), math.sin(0.25 * angle) / math.sin(angle)]
    assert [term.weight for term in kernel.terms] == pytest.approx(expected, rel=1e-9)


def test_a_linear_merge_of_nothing_is_zero(pool: Any) -> None:
    assert kernel_of(recipe_of("linear", weight=(0, 0, 0)), pool) == Linear(terms=(), divisor=1.0)


def test_whatever_holds_no_floats_is_the_bases(pool: Any) -> None:
    plan = {tensor.name: tensor for tensor in lower(recipe_of("task_arithmetic", weight=(0.5, 0.5, 0.5)), pool).tensors}
    assert plan["layers.0.mlp.ids"].kernel == Copy(source="base")
    assert plan["layers.0.mlp.ids"].dtype == "int64"


def test_weightless_sources_keep_their_unweighted_vote(pool: Any) -> None:
    unweighted = kernel_of(recipe_of("ties", weight=(0, 1, 1)), pool)
    assert isinstance(unweighted, Vote)
    assert [term.weight for term in unweighted.terms] == [1.0, 1.0, 1.0]
    assert (unweighted.gains, unweighted.zero) == ((0.0, 1.0, 1.0), "majority")
    weighted = kernel_of(recipe_of("ties", "mergekit", weight=(0, 1, -2)), pool)
    assert isinstance(weighted, Vote)
    assert [term.source for term in weighted.terms] == ["two", "three"]
    assert (weighted.gains, weighted.shares, weighted.zero) == ((1.0, 1.0), (1.0, -2.0), "plus")


@pytest.mark.parametrize(("aggregate", "shares"), [("mean", 1.0), ("weighted_mean", 0.5), ("sum", 0.0)])
def test_shares(pool: Any, aggregate: str, shares: float) -> None:
    kernel = kernel_of(recipe_of("ties", weight=(0.5, -0.5, 0.5), aggregate=aggregate), pool)
    assert isinstance(kernel, Vote)
    assert kernel.shares == (shares, shares, shares)
    assert [term.weight for term in kernel.terms] == [1.0, -1.0, 1.0]


def test_each_source_has_its_own_threshold_and_mask(pool: Any) -> None:
    trimmed = kernel_of(recipe_of("ties", "mergekit", density=(0.5, 0.5, 1.0)), pool)
    assert isinstance(trimmed, Vote)
    one, two, three = (term.keep for term in trimmed.terms)
    assert isinstance(one, Trim)
    assert isinstance(two, Trim)
    assert one != two
    assert three is None
    dropped = kernel_of(recipe_of("dare_linear", density=(0.5, 0.5, 1.0)), pool)
    assert isinstance(dropped, Delta)
    one, two, three = (term.keep for term in dropped.terms)
    assert isinstance(one, Drop)
    assert isinstance(two, Drop)
    assert one.seed != two.seed
    assert three is None
    assert [term.weight for term in dropped.terms] == [2.0, 2.0, 1.0]


def test_trim_keeps_at_least_one(pool: Any) -> None:
    kernel = kernel_of(recipe_of("ties", "mergekit", density=(0.001, 0.001, 0.001)), pool)
    assert isinstance(kernel, Vote)
    for term in kernel.terms:
        x = (pool.tensor(term.source, NAME) - pool.tensor("base", NAME)).abs().reshape(-1)
        assert term.keep == Trim(threshold=float(x.max()), last_tie=int(x.argmax()))


def test_fields_reach_their_tensors(memory_pool: MakePool) -> None:
    names = [
        "embed_tokens.weight",
        *(f"layers.{i}.{m}.w" for i in (0, 1) for m in ("self_attn", "mlp", "ln")),
        "norm.w",
    ]
    pool = memory_pool({model: {name: torch.randn(3) for name in names} for model in ("base", "one")})
    field = Field.of(
        {
            "attention": [[0.1], [0.2]],
            "mlp": [[0.3], [0.4]],
            "norm": [[0.5], [0.6]],
            "embed": [[0.7]],
            "head": [[0.8]],
        }
    )
    recipe = Recipe(
        operator="task_arithmetic",
        options=options_of(OPERATORS["task_arithmetic"], "paper"),
        base="base",
        sources=("one",),
        parameters=(("lambda", Field.constant([1.0], 2)), ("weight", field)),
        dtype="float32",
    )
    found = {}
    for tensor in lower(recipe, pool).tensors:
        assert isinstance(tensor.kernel, Delta)
        found[tensor.name] = tensor.kernel.terms[0].weight
    assert [found[name] for name in names] == [0.7, 0.1, 0.3, 0.5, 0.2, 0.4, 0.6, 0.8]


def test_only_what_changed_is_planned_anew(memory_pool: MakePool) -> None:
    names = [f"layers.{i}.mlp.w" for i in range(3)]
    pool = memory_pool({model: {name: torch.randn(3) for name in names} for model in ("base", "one")})

    def plan_of(middle: float) -> Any:
        recipe = recipe_of("ties", sources=("one",), weight=(0.5,), density=(0.5,), layers=3)
        rows = {role: [[0.5]] * len(rows) for role, rows in recipe.parameter("weight").by_role()}
        weight = Field.of({**rows, "mlp": [[0.5], [middle], [0.5]]})
        parameters = tuple((name, weight if name == "weight" else field) for name, field in recipe.parameters)
        return lower(Recipe.from_data({**recipe.to_data(), "parameters": _data(parameters)}), pool)

    assert plan_of(0.25).changed(plan_of(0.5)) == {names[1]}
    assert plan_of(0.25).changed(plan_of(0.25)) == frozenset()


def _data(parameters: tuple[tuple[str, Field], ...]) -> dict[str, Any]:
    return {name: dict(field.by_role()) for name, field in parameters}


def test_unknown_models_are_refused(pool: Any) -> None:
    with pytest.raises(
        MergeError, match=r"names the models \['four'\]; the pool has \['base', 'one', 'two', 'three'\]"
    ):
        lower(recipe_of("linear", weight=(1, 1), sources=("one", "four")), pool)


def test_another_number_of_layers_is_refused(pool: Any) -> None:
    with pytest.raises(MergeError, match="values for 2 layers; the models of the pool have 1"):
        lower(recipe_of("linear", layers=2), pool)


def test_weights_that_cancel_divide_by_one(memory_pool: Any) -> None:
    """What fp32 leaves of 0.05 + 0.3 - 0.35 is a rounding error and no divisor."""
    name = "model.layers.0.mlp.up_proj.weight"
    models = {
        model: {name: torch.full((2, 3), value)} for model, value in (("base", 1.0), ("a", 2.0), ("b", 3.0), ("c", 4.0))
    }
    recipe = Recipe(
        operator="linear",
        options=(("normalize", True),),
        base=None,
        sources=("a", "b", "c"),
        parameters=(("weight", Field.constant([0.05, 0.3, -0.35], 1)),),
        dtype="float32",
    )
    pool = memory_pool(models)
    ((_, merged),) = execute(lower(recipe, pool), pool)
    torch.testing.assert_close(merged, torch.full((2, 3), 0.05 * 2 + 0.3 * 3 - 0.35 * 4))


def test_a_bf16_weight_beyond_fp16_is_clamped_when_copied(memory_pool: Any) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    pool = memory_pool({"base": {name: torch.tensor([[1e5, -1e5, 1.0]], dtype=torch.bfloat16)}})
    ((_, copied),) = execute(lower(uniform(["base"], layers=1, dtype="float16"), pool), pool)
    assert copied.tolist() == [[65504.0, -65504.0, 1.0]]
