from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from evomerge.merging.factors import Factors
from evomerge.merging.keep_rules import Band, Clip, Drop, Fence, Keep, Prune, Trim
from evomerge.merging.plan import (
    Consensus,
    Copy,
    Delta,
    Kernel,
    Linear,
    MergePlan,
    Overlap,
    TensorPlan,
    Term,
    Vote,
    Winner,
)

TERMS = (Term(source="one", weight=0.5), Term(source="two", weight=0.25, keep=Drop(seed=1, density=0.5)))
DELTA = Delta(base="base", terms=TERMS, divisor=1.0, scale=1.0)
VOTE = Vote(base="base", terms=TERMS, gains=(1.0, 1.0), shares=(0.5, 0.25), zero="plus", scale=1.0)


def plan_of(kernel: Kernel, name: str = "w") -> TensorPlan:
    return TensorPlan(name=name, shape=(2, 3), dtype="float32", kernel=kernel)


def test_everything_changed_when_there_is_no_previous_plan() -> None:
    plan = MergePlan(tensors=(plan_of(DELTA, "a"), plan_of(VOTE, "b")))
    assert plan.changed(None) == {"a", "b"}


def test_only_what_differs_changed() -> None:
    before = MergePlan(tensors=(plan_of(DELTA, "a"), plan_of(VOTE, "b")))
    after = MergePlan(tensors=(plan_of(replace(DELTA, scale=0.5), "a"), plan_of(replace(VOTE), "b")))
    assert after.changed(before) == {"a"}
    assert before.changed(before) == frozenset()


TRIM = Trim(threshold=0.5, last_tie=0)
PRUNE = Prune(seed=1, density=0.5, epsilon=0.1, ranks="row", inverse=True)
KEEPS: list[Keep] = [
    Drop(seed=2, density=0.5),
    TRIM,
    Band(inner=TRIM, outer=replace(TRIM, threshold=0.75)),
    PRUNE,
    replace(PRUNE, ranks="tensor"),
    Clip(limit=0.5),
    Fence(least=0.5, columns=3),
]
CONTESTS: list[Kernel] = [
    Consensus(base="base", terms=TERMS, cuts=(0.4, 0.4), least=2.0, scale=1.0),
    Winner(base="base", terms=TERMS, by="rank", scale=1.0),
    Winner(base="base", terms=TERMS, by="magnitude", scale=1.0),
    Overlap(base="base", terms=TERMS, epsilon=1e-5, gains=(1.0, 1.1)),
]

OTHERS: list[Kernel] = [
    Copy(source="one"),
    Linear(terms=TERMS, divisor=1.0),
    replace(DELTA, scale=2.0),
    replace(DELTA, divisor=2.0),
    replace(DELTA, terms=TERMS[:1]),
    replace(DELTA, terms=(TERMS[1], TERMS[0])),
    *(replace(DELTA, terms=(TERMS[0], replace(TERMS[1], keep=keep))) for keep in KEEPS),
    VOTE,
    replace(VOTE, zero="majority"),
    replace(VOTE, select=TRIM),
    replace(VOTE, floor=1e-6),
    *CONTESTS,
]


def test_all_of_them_differ() -> None:
    assert len({plan_of(other).digest for other in OTHERS}) == len(OTHERS)


@pytest.mark.parametrize("other", OTHERS)
def test_digest_tells_contents_apart(other: Kernel) -> None:
    assert plan_of(other).digest != plan_of(DELTA).digest
    assert plan_of(other).digest == plan_of(replace(other)).digest


def test_sources_name_the_base_first() -> None:
    assert {plan_of(kernel).sources for kernel in (DELTA, VOTE, *CONTESTS)} == {("base", "one", "two")}
    assert plan_of(Linear(terms=TERMS, divisor=1.0)).sources == ("one", "two")
    assert plan_of(Copy(source="two")).sources == ("two",)


@pytest.mark.parametrize(("shape", "run", "axis"), [((3, 4), 4, 1), ((3, 4), 1, 0), ((2, 3, 4), 4, 2), ((5,), 5, 0)])
def test_factors_reach_their_elements(shape: tuple[int, ...], run: int, axis: int) -> None:
    values = np.arange(1.0, 1.0 + math.prod(shape) // shape[axis])
    everywhere = np.broadcast_to(np.expand_dims(values.reshape(shape[:axis] + shape[axis + 1 :]), axis), shape).ravel()
    factors = Factors.of(values, run)
    for start in range(len(everywhere)):
        for count in range(len(everywhere) - start + 1):
            assert factors.within(start, count).tolist() == everywhere[start : start + count].tolist()


def test_factors_tell_plans_apart() -> None:
    one, other = (replace(TERMS[0], factors=Factors.of(np.array([1.0, last]), 3)) for last in (0.5, 0.25))
    assert plan_of(Linear(terms=(one,), divisor=1.0)).digest != plan_of(Linear(terms=(other,), divisor=1.0)).digest
    assert plan_of(Linear(terms=(one,), divisor=1.0)) == plan_of(Linear(terms=(replace(one),), divisor=1.0))
