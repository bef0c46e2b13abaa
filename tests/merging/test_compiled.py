"""Compiled kernels give the executor's own numbers, and are used where they pay."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging import compiled
from evomerge.merging.compiled import Compiler, missing
from evomerge.merging.executor import execute, execute_into
from evomerge.merging.keep_rules import Band, Clip, Drop, Keep, Prune, RankScope, Trim
from evomerge.merging.plan import (
    Consensus,
    Delta,
    Kernel,
    Linear,
    MergePlan,
    Overlap,
    TensorPlan,
    Term,
    Vote,
    Winner,
    Zero,
)

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]

NEVER = Compiler(pays_from=math.inf)
DTYPES = ["bfloat16", "float16", "float32"]
STEP = 2.0**-10
"""Changes are multiples of it: ties at thresholds and ballots that cancel are common."""


def as_it_is(function: Callable[..., Any], _contracted: bool) -> Callable[..., Any]:
    return function


def noting(made: list[Any]) -> Callable[[Callable[..., Any], bool], Callable[..., Any]]:
    """Compiles nothing, and keeps what it was to compile."""

    def note(function: Callable[..., Any], _contracted: bool) -> Callable[..., Any]:
        made.append(function)
        return function

    return note


def trims() -> st.SearchStrategy[Trim]:
    return st.builds(Trim, threshold=st.integers(0, 4).map(lambda i: i * STEP), last_tie=st.integers(0, 99))


def rules(kind: str, *, inverse: bool) -> st.SearchStrategy[Keep | None]:
    seeds, densities = st.integers(0, 2**63 - 1), st.floats(0.01, 0.99)
    scope: RankScope = "row" if kind == "prune by row" else "tensor"
    prunes = st.tuples(st.floats(0.01, 0.99), st.floats(0, 0.5), seeds).map(
        lambda t: Prune(seed=t[2], density=t[0], epsilon=min(t[1], t[0], 1 - t[0]), ranks=scope, inverse=inverse)
    )
    found: dict[str, st.SearchStrategy[Any]] = {
        "all": st.none(),
        "trim": trims(),
        "band": st.one_of(trims(), st.builds(Band, inner=trims(), outer=trims())),
        "drop": st.builds(Drop, seed=seeds, density=densities),
        "prune by row": prunes,
        "prune by tensor": prunes,
        "clip": st.builds(Clip, limit=st.sampled_from([0.0, STEP, 2 * STEP])),
    }
    return st.one_of(st.none(), found[kind], found[kind])


ENOUGH = compiled.LEAST + 1000


KINDS = ["all", "trim", "band", "drop", "prune by row", "prune by tensor", "clip"]
NUMBERS = st.one_of(st.floats(-2, 2, width=32), st.sampled_from([1.0, -1.0]))
POSITIVE = st.one_of(st.floats(0, 2, width=32), st.sampled_from([0.0, 1.0]))


@st.composite
def kernels(draw: st.DrawFn, count: int) -> Kernel:
    rule = rules(draw(st.sampled_from(KINDS)), inverse=draw(st.booleans()))
    weights, gains, shares = (draw(st.lists(s, min_size=count, max_size=count)) for s in (NUMBERS, POSITIVE, POSITIVE))
    terms = tuple(Term(source=f"{k}", weight=weight, keep=draw(rule)) for k, weight in enumerate(weights))
    whole = tuple(Term(source=f"{k}", weight=weight) for k, weight in enumerate(weights))
    scale, divisor = draw(NUMBERS), draw(st.sampled_from([1.0, 0.3, -2.5]))
    made: list[Kernel] = [
        Linear(terms=whole, divisor=divisor),
        Delta(base="base", terms=terms, divisor=divisor, scale=scale),
        Winner(base="base", terms=terms, by="magnitude", scale=scale),
        Consensus(base="base", terms=whole, cuts=tuple(gains), least=draw(st.integers(0, count)), scale=scale),
        Overlap(base="base", terms=whole, epsilon=draw(st.sampled_from([0.0, STEP])), gains=tuple(gains)),
    ]
    if count > 1:
        zeros: list[Zero] = ["plus", "majority"]
        zero = draw(st.sampled_from(zeros))
        floor = draw(st.sampled_from([0.0, 0.5]))
        vote = Vote(
            base="base",
            terms=terms,
            gains=tuple(gains),
            shares=tuple(shares),
            zero=zero,
            scale=scale,
            floor=floor,
        )
        made += 3 * [vote]
    return draw(st.sampled_from(made))


def family(count: int, shape: tuple[int, ...], dtypes: list[str], seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(-99, 99, shape, generator=generator)
    models = {"base": base}
    for k in range(count):
        models[str(k)] = base + torch.randint(-4, 5, shape, generator=generator)
    return {
        model: {"w": (theta * STEP).to(getattr(torch, dtype))}
        for (model, theta), dtype in zip(models.items(), dtypes, strict=True)
    }


def merged(kernel: Kernel, pool: Any, dtype: str, compiler: Compiler) -> torch.Tensor:
    shape = tuple(pool.tensor("base", "w").shape)
    plan = MergePlan(tensors=(TensorPlan(name="w", shape=shape, dtype=dtype, kernel=kernel),))
    ((_, out),) = execute(plan, pool, compiler=compiler)
    return out


def assert_same(kernel: Kernel, pool: Any, dtype: str, compiler: Compiler) -> None:
    out = merged(kernel, pool, dtype, compiler)
    assert not compiler.broken
    assert torch.equal(out, merged(kernel, pool, dtype, NEVER))


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(2, 7), st.integers(1, 17))
def test_expressions_give_the_numbers_of_the_kernels(
    memory_pool: MakePool, data: st.DataObject, count: int, rows: int, columns: int
) -> None:
    stored = data.draw(st.lists(st.sampled_from(DTYPES), min_size=count + 1, max_size=count + 1))
    pool = memory_pool(family(count, (rows, columns), stored, data.draw(st.integers(0, 99))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "LEAST", 2)
        patch.setattr(compiled, "BLOCK", data.draw(st.sampled_from([2, 16, 1 << 20])))
        compiler = Compiler(pays_from=0, compile=as_it_is)
        assert_same(data.draw(kernels(count)), pool, data.draw(st.sampled_from(DTYPES)), compiler)


TERMS = tuple(Term(source=f"{k}", weight=w, keep=Trim(threshold=2 * STEP, last_tie=5)) for k, w in enumerate([1.0, -2]))
DROPS = tuple(Term(source=f"{k}", weight=w, keep=Drop(seed=k, density=0.3)) for k, w in enumerate([0.3, -0.2]))
PRUNES = tuple(
    Term(source=f"{k}", weight=w, keep=Prune(seed=k, density=0.4, epsilon=e, ranks="row", inverse=True))
    for k, (w, e) in enumerate([(0.3, 0.1), (-0.2, 0.4)])
)
TRULY: dict[str, Kernel] = {
    "linear": Linear(terms=tuple(Term(source=f"{k}", weight=0.3 + k) for k in range(2)), divisor=0.7),
    "vote": Vote(base="base", terms=TERMS, gains=(1.0, 0.3), shares=(0.4, 0.7), zero="majority", scale=0.9),
    "mask": Delta(base="base", terms=DROPS, divisor=0.7, scale=0.9),
    "prune": Delta(base="base", terms=PRUNES, divisor=0.7, scale=0.9),
}


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(pays_from=0)


needs_compiler = pytest.mark.skipif(bool(missing()), reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("name", ["vote", "mask", "prune"])
def test_compiled_passes_give_the_same_numbers_for_any_size(
    memory_pool: MakePool, name: str, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BLOCK", 20_000)
    for columns in (ENOUGH, 70_001, 20_000, 20_001, 39_999):
        pool = memory_pool(family(2, (1, columns), ["bfloat16", "bfloat16", "float32"], columns))
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert_same(TRULY[name], pool, "bfloat16", compiler)


@needs_compiler
def test_outputs_may_be_strided_and_of_another_dtype(memory_pool: MakePool, compiler: Compiler) -> None:
    pool = memory_pool(family(2, (90, 110), ["bfloat16", "bfloat16", "float32"]))
    plan = MergePlan(
        tensors=(TensorPlan(name="w", shape=(90, 110), dtype="bfloat16", kernel=TRULY["linear"]),),
    )
    out = torch.empty(110, 90, dtype=torch.float32).t()
    execute_into(plan, pool, {"w": out}, compiler=compiler)
    assert torch.equal(out, merged(TRULY["linear"], pool, "bfloat16", NEVER).float())


def test_majorities_that_change_from_candidate_to_candidate(
    memory_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BLOCK", 1 << 13)
    compiler = Compiler(pays_from=0, compile=as_it_is)
    pool = memory_pool(family(2, (1, ENOUGH), ["bfloat16"] * 3))
    found = []
    for sign in (1.0, 1.0, -1.0, -1.0, 1.0):
        terms = tuple(Term(source=f"{k}", weight=sign) for k in range(2))
        kernel = Vote(base="base", terms=terms, gains=(1.0,) * 2, shares=(1.0,) * 2, zero="majority", scale=sign)
        assert_same(kernel, pool, "bfloat16", compiler)
        found.append(merged(kernel, pool, "bfloat16", compiler))
    assert torch.equal(found[0], found[2])  # where ballots cancel, too, both elect what the majority did


@needs_compiler
@pytest.mark.parametrize("name", ["linear", "vote"])
def test_threads_share_compiled_kernels(memory_pool: MakePool, name: str, compiler: Compiler) -> None:
    pool = memory_pool(family(2, (ENOUGH,), ["bfloat16", "bfloat16", "float32"]))
    with ThreadPoolExecutor(4) as threads:
        outs = list(threads.map(lambda _: merged(TRULY[name], pool, "bfloat16", compiler), range(20)))
    expected = merged(TRULY[name], pool, "bfloat16", NEVER)
    assert all(torch.equal(out, expected) for out in outs)


def test_a_form_is_compiled_once_a_process_has_made_enough_of_it(memory_pool: MakePool) -> None:
    made: list[Any] = []
    compiler = Compiler(pays_from=2.5 * ENOUGH, compile=noting(made))
    pool = memory_pool(family(2, (ENOUGH,), ["bfloat16"] * 3))
    counts = []
    for kernel in ("vote", "vote", "mask", "vote", "vote", *["linear"] * 10):
        merged(TRULY[kernel], pool, "bfloat16", compiler)
        counts.append(len(made))
    assert counts == [0, 0, 0, 1, 1, *[1] * 9, 2]  # sums gain less, so they wait four times as long


def test_what_cannot_be_compiled_is_merged_all_the_same(
    memory_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Callable[..., Any], _contracted: bool) -> Callable[..., Any]:
        raise OSError("no space left\non the device")

    compiler = Compiler(pays_from=0, compile=fail)
    pool = memory_pool(family(2, (ENOUGH,), ["bfloat16"] * 3))
    for _ in range(2):
        out = merged(TRULY["vote"], pool, "bfloat16", compiler)
        assert torch.equal(out, merged(TRULY["vote"], pool, "bfloat16", NEVER))
    assert compiler.broken == "OSError: no space left"
    assert len(caplog.records) == 1


def test_nothing_is_tried_without_a_compiler(memory_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing() == "no C++ compiler (no-such-compiler)"
    made: list[Any] = []
    compiler = Compiler(pays_from=0, compile=noting(made))
    pool = memory_pool(family(2, (ENOUGH,), ["bfloat16"] * 3))
    merged(TRULY["linear"], pool, "bfloat16", compiler)
    assert not made
    assert compiler.broken
