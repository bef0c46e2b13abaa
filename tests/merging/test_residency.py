"""Merging from where models are kept. Tiers of a GPU cannot be run here; what they compute with can, on `meta`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.executor import execute, execute_into
from evomerge.merging.int8_deltas import Quantized, int8_delta
from evomerge.merging.operators import lower
from evomerge.merging.plan import Core, Delta, TensorPlan, Term, Vote
from evomerge.merging.residency import Residence
from evomerge.recipe import OPERATORS, Field, Recipe, options_of, uniform

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"
EAGER = sorted(set(OPERATORS) - {"iso_c"})


def recipe_of(operator: str, weight: float = 0.5) -> Recipe:
    table = OPERATORS[operator]
    sources = ("one", "two")[: table.max_sources]
    values = {
        name: 0.4 if parameter.default is None else parameter.default for name, parameter in table.parameters.items()
    }
    values |= {"weight": weight, "density": 0.5} if "weight" in values else {}
    return Recipe(
        operator=operator,
        options=options_of(table, "paper"),
        base="base" if table.needs_base else None,
        sources=sources,
        parameters=tuple(
            (
                name,
                Field.constant([values[name]] * (len(sources) if table.parameters[name].scope == "source" else 1), 1),
            )
            for name in sorted(table.parameters)
        ),
        dtype="float32",
    )


@pytest.fixture
def pool(memory_pool: MakePool) -> Any:
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(300, 130, generator=generator)
    experts = {name: base + 0.001 * torch.randn(300, 130, generator=generator) for name in ("one", "two")}
    return memory_pool({name: {NAME: theta.bfloat16()} for name, theta in {"base": base, **experts}.items()})


def merged(recipe: Recipe, pool: Any, residence: Residence | None = None, block: int | None = None) -> torch.Tensor:
    live = {NAME: torch.full((300, 130), float("nan"))}
    execute_into(lower(recipe, pool), pool, live, block=block, residence=residence)
    return live[NAME]


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_any_residence_on_the_cpu_gives_the_same_bytes(pool: Any, operator: str) -> None:
    expected = merged(recipe_of(operator), pool)
    for tier in ("mapped", "device"):
        residence = Residence(pool=pool, tier=tier)
        for _ in range(2):
            assert torch.equal(merged(recipe_of(operator), pool, residence), expected)


@pytest.mark.parametrize("operator", EAGER)
def test_kernels_compute_on_the_device_of_their_inputs(pool: Any, operator: str) -> None:
    """`meta` refuses tensors of two devices like any other device does; it has no numbers, which a tally needs."""
    plan = lower(recipe_of(operator), pool)
    tensors = [
        replace(t, kernel=replace(t.kernel, zero="plus")) if isinstance(t.kernel, Vote) else t for t in plan.tensors
    ]
    residence = Residence(pool=pool, tier="device", device=torch.device("meta"))
    for out in (torch.empty(300, 130, device="meta"), torch.empty(130, 300, device="meta").T):
        execute_into(replace(plan, tensors=tuple(tensors)), pool, {NAME: out}, block=1000, residence=residence)
    assert {piece.device.type for part in residence._kept.values() for piece in part} == {"meta"}


class Stream:
    """Stands for a stream of a GPU that has always done everything."""

    def __init__(self, *_: Any) -> None: ...

    def record_event(self) -> Stream:
        return self

    def wait_event(self, _: Any) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def pinned_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pinned tier asks of a GPU, without one: the order of its copies, not the copies."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)


@pytest.mark.usefixtures("pinned_on_cpu")
@pytest.mark.parametrize("approximate", [False, True])
def test_a_pinned_pool_is_streamed_tensor_by_tensor(memory_pool: MakePool, approximate: bool) -> None:
    names = [f"layers.{layer}.mlp.w" for layer in range(3)]
    thetas = {model: {name: torch.randn(40, 130) for name in names} for model in ("base", "one", "two")}
    pool = memory_pool(thetas)
    recipe = replace(
        recipe_of("task_arithmetic"),
        parameters=(("lambda", Field.constant([1.0], 3)), ("weight", Field.constant([0.5, 0.3], 3))),
    )
    plan, found = lower(recipe, pool), []
    for tier in ("pinned", "mapped"):
        deltas: Any = "int8" if approximate else "exact"
        residence = Residence(pool=pool, tier=tier, deltas=deltas, approximate=approximate)
        live = {name: torch.full((40, 130), float("nan")) for name in names}
        for _ in range(2):
            execute_into(plan, pool, live, residence=residence)
        found.append(live)
        assert len(residence._kept) == (9 if tier == "pinned" else 0)
        assert not residence._staged
    assert all(torch.equal(found[0][name], found[1][name]) for name in names)


@pytest.mark.usefixtures("pinned_on_cpu")
def test_core_space_streams_the_base_alone(pool: Any) -> None:
    inner = Delta(base="base", terms=(Term(source="one", weight=1.0),), divisor=1.0, scale=1.0)
    kernel = Core(base="base", sources=("one", "two"), inner=inner)
    tensor = TensorPlan(name=NAME, shape=(300, 130), dtype="float32", kernel=kernel)
    residence = Residence(pool=pool, tier="pinned")
    assert [*residence.ahead([tensor])] == [tensor]
    assert set(residence._kept) == {("base", NAME, False)}


@given(st.integers(1, 700), st.data())
def test_eight_bits_are_off_by_half_a_scale_at_most(memory_pool: MakePool, count: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(count)
    base, x = torch.randn(2, count, generator=generator)
    x[::3] = 0
    pool = memory_pool({"base": {NAME: base}, "one": {NAME: base + x}})
    part = Quantized(base, *int8_delta(pool, "one", NAME))
    bound = part.scales.repeat_interleave(128)[:count] / 2 + 1e-6
    assert bool(((part[0:count] - pool.tensor("one", NAME)).abs() <= bound).all())
    assert torch.equal(part[0:count][::3], base[::3])
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    assert torch.equal(part[start:stop], part[0:count][start:stop])


def test_an_approximate_merge_is_near_the_exact_one(pool: Any) -> None:
    near = Residence(pool=pool, approximate=True)
    recipe = recipe_of("task_arithmetic", weight=0.7)
    exact, found = merged(recipe, pool), merged(recipe, pool, near)
    scales = sum(int8_delta(pool, name, NAME)[1].max() for name in ("one", "two"))
    assert 0 < float((found - exact).abs().max()) <= 0.7 * float(scales) / 2 + 1e-6
    change = exact - pool.tensor("base", NAME)
    assert float((found - exact).norm() / change.norm()) < 0.01
    assert torch.equal(merged(recipe, pool, near, block=77), found)


@pytest.mark.parametrize("operator", sorted(name for name, operator in OPERATORS.items() if operator.adds))
def test_eight_bits_do_for_operators_that_add(pool: Any, operator: str) -> None:
    recipe, base = recipe_of(operator), pool.tensor("base", NAME).float()
    exact, found = merged(recipe, pool), merged(recipe, pool, Residence(pool=pool, approximate=True))
    error = float((found - exact).norm() / (exact - base).norm())
    assert 0 < error < 0.01


@pytest.mark.parametrize("members", [["base"], ["one"], ["one", "two"]], ids=str)
def test_anchors_are_exact_where_task_vectors_are_not(pool: Any, members: list[str]) -> None:
    recipe = uniform(members, layers=1, dtype="bfloat16")
    ((_, expected),) = execute(lower(recipe, pool), pool)
    found = merged(recipe, pool, Residence(pool=pool, approximate=True))
    assert torch.equal(found, expected.float())


def test_only_what_was_planned_is_kept_on_the_device(pool: Any) -> None:
    small = Residence(pool=pool, tier="device", deltas="int8")
    for approximate in (True, False):
        small.approximate = approximate
        merged(recipe_of("task_arithmetic"), pool, small)
        merged(recipe_of("linear"), pool, small)
    assert set(small._kept) == {("base", NAME, False), ("one", NAME, True), ("two", NAME, True)}
    exact = Residence(pool=pool, tier="device")
    merged(recipe_of("task_arithmetic"), pool, exact)
    assert set(exact._kept) == {(name, NAME, False) for name in ("base", "one", "two")}
