"""The executor against the oracle, on random models."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import MergeError
from evomerge.merging.executor import execute, execute_into
from evomerge.merging.operators import lower
from evomerge.merging.plan import Copy, Delta, Linear, TensorPlan, Vote
from evomerge.merging.reference import reference_merge
from evomerge.recipe import OPERATORS, Field, Operator, OutputDtype, Preset, Recipe, options_of

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]

MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float32: 2.0**-149}
DTYPES: tuple[OutputDtype, ...] = ("bfloat16", "float16", "float32")

DENSITIES = st.one_of(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.sampled_from([0.0, 1.0]))
WEIGHTS = st.one_of(st.floats(0.05, 2), st.floats(-2, -0.05), st.sampled_from([0.0, 1.0, -1.0, 0.1, 0.2, 0.3]))
SCALES = st.sampled_from([1.0, 0.7, -1.3, 0.0])
SHAPES = st.lists(st.lists(st.integers(1, 12), max_size=3).map(tuple), min_size=1, max_size=3)


@st.composite
def families(draw: st.DrawFn) -> dict[str, dict[str, torch.Tensor]]:
    """A base and one to three experts: stored dtypes differ, and many elements are the base's own."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    names = [f"layers.0.mlp.{i}" for i in range(3)]
    stored = st.sampled_from(list(MANTISSA))
    base = {
        name: 0.02 * torch.randn(shape, generator=generator) for name, shape in zip(names, draw(SHAPES), strict=False)
    }
    base_dtype = draw(stored)
    family = {"base": {name: theta.to(base_dtype) for name, theta in base.items()}}
    for expert in ["one", "two", "three"][: draw(st.integers(1, 3))]:
        dtype, spread = draw(stored), draw(st.sampled_from([1e-3, 1e-2]))
        family[expert] = {
            name: torch.where(
                torch.rand(theta.shape, generator=generator) < 0.3,
                theta.float(),
                theta.float() + spread * torch.randn(theta.shape, generator=generator),
            ).to(dtype)
            for name, theta in family["base"].items()
        }
    return family


@st.composite
def recipes(draw: st.DrawFn, operator: Operator, experts: tuple[str, ...]) -> Recipe:
    sources = experts[: operator.max_sources]
    values = {
        "weight": draw(st.lists(WEIGHTS, min_size=len(sources), max_size=len(sources))),
        "density": draw(st.lists(DENSITIES, min_size=len(sources), max_size=len(sources))),
        "lambda": [draw(SCALES)],
        "t": [draw(DENSITIES)],
    }
    options = {name: draw(st.sampled_from(legal)) for name, legal in operator.options.items()}
    return Recipe(
        operator=operator.name,
        options=options_of(operator, "paper", **options),
        base="base" if operator.needs_base else None,
        sources=sources,
        parameters=tuple((name, Field.constant(values[name], 1)) for name in sorted(operator.parameters)),
        mask_seed=draw(st.integers(0, 99)),
        dtype=draw(st.sampled_from(DTYPES)),
    )


def tolerance(plan: TensorPlan, pool: Any) -> torch.Tensor:
    """What fp32 sums may be off: a few units of 2^-24 of the sum of all magnitudes that went into them."""
    theta = {model: pool.tensor(model, plan.name).double() for model in ("base", *plan.sources)}
    base = theta["base"].abs()
    match plan.kernel:
        case Copy(source=source):
            size = base + theta[source].abs()
        case Linear(terms=terms, divisor=divisor):
            size = sum((abs(term.weight / divisor) * theta[term.source].abs() for term in terms), 0 * base)
        case Delta(terms=terms, divisor=divisor, scale=scale):
            changes = (abs(term.weight / divisor) * (theta[term.source] - theta["base"]).abs() for term in terms)
            size = base + abs(scale) * sum(changes, 0 * base)
        case Vote(terms=terms, gains=gains, shares=shares, scale=scale):
            pairs = zip(terms, gains, strict=True)
            changes = (abs(term.weight) * gain * (theta[term.source] - theta["base"]).abs() for term, gain in pairs)
            size = base + abs(scale) * sum(changes, 0 * base) / smallest_divisor(shares)
    return torch.as_tensor(size * (len(theta) + 8) * 2.0**-24)


def smallest_divisor(shares: tuple[float, ...]) -> float:
    sums = [abs(float(sum(torch.tensor(s)))) for n in range(1, len(shares) + 1) for s in combinations(shares, n)]
    return min([1.0, *filter(None, sums)])


def half_ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    exponent = torch.frexp(values.double()).exponent
    ones = torch.ones(values.shape, dtype=torch.float64)
    return torch.ldexp(ones, exponent - 2 - MANTISSA[dtype]).clamp(min=SMALLEST[dtype] / 2)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_equals_the_oracle_rounded_once(
    memory_pool: MakePool, operator: Operator, data: st.DataObject, block: int
) -> None:
    family = data.draw(families())
    recipe = data.draw(recipes(operator, tuple(family)[1:]))
    pool = memory_pool(family)
    plan = lower(recipe, pool)
    exact = dict(reference_merge(recipe, pool))
    merged = dict(execute(plan, pool, block=block))
    assert merged.keys() == exact.keys()
    for tensor in plan.tensors:
        out, expected = merged[tensor.name], exact[tensor.name]
        assert (out.dtype, out.shape) == (getattr(torch, recipe.dtype), expected.shape)
        assert bool(out.isfinite().all())
        if recipe.dtype == "float16":
            expected = expected.clamp(-65504, 65504)
        allowed = half_ulp(torch.maximum(out.double().abs(), expected.abs()), out.dtype) + tolerance(tensor, pool)
        assert bool(((out.double() - expected).abs() <= allowed).all())


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 40))
def test_does_not_depend_on_the_block_size(
    memory_pool: MakePool, operator: Operator, data: st.DataObject, block: int
) -> None:
    family = data.draw(families())
    pool = memory_pool(family)
    plan = lower(data.draw(recipes(operator, tuple(family)[1:])), pool)
    whole = dict(execute(plan, pool))
    for name, values in execute(plan, pool, block=block):
        assert torch.equal(bits(values), bits(whole[name]))


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.int32 if values.dtype == torch.float32 else torch.int16)


@pytest.fixture(scope="module")
def large(memory_pool: MakePool) -> Any:
    """A base and three experts, 400,000 bf16 elements in one tensor, larger than any table or block."""
    generator = torch.Generator().manual_seed(1)
    base = (0.02 * torch.randn(1000, 400, generator=generator)).bfloat16()
    family = {"base": base}
    for expert in ("one", "two", "three"):
        family[expert] = (base.float() + 0.002 * torch.randn(base.shape, generator=generator)).bfloat16()
    return memory_pool({model: {"layers.0.mlp.w": theta} for model, theta in family.items()})


def recipe_of(operator: str, preset: Preset = "paper", *, dtype: OutputDtype = "bfloat16") -> Recipe:
    table = OPERATORS[operator]
    sources = ("one", "two", "three")[: table.max_sources]
    values = {
        "weight": [0.317181, 0.541871, -0.284529],
        "density": [0.271828, 0.618034, 0.577216],
        "lambda": [0.874551],
        "t": [0.318309],
    }
    return Recipe(
        operator=operator,
        options=options_of(table, preset),
        base="base" if table.needs_base else None,
        sources=sources,
        parameters=tuple((name, Field.constant(values[name], 1)) for name in sorted(table.parameters)),
        mask_seed=3,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_one_ulp_on_one_element_in_a_thousand(large: Any, operator: str, preset: Preset, dtype: OutputDtype) -> None:
    recipe = recipe_of(operator, preset, dtype=dtype)
    ((name, out),) = execute(lower(recipe, large), large)
    expected = dict(reference_merge(recipe, large))[name].to(out.dtype)
    assert float((out != expected).double().mean()) <= 0.001
    apart = (out.double() - expected.double()).abs()
    assert bool((apart <= 2 * half_ulp(torch.maximum(out.abs(), expected.abs()), out.dtype)).all())


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


@pytest.mark.parametrize("operator", sorted(OPERATORS))
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
