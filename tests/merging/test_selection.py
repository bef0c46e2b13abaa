from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging import rank_tables, selection, statistics
from evomerge.merging.keep_rules import Trim
from evomerge.merging.selection import Changes, Importance, Variance

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"
CHANGES = Changes(base="base", sources=("one", "two", "three"), name=NAME)


@pytest.fixture(scope="module")
def pool(memory_pool: MakePool) -> Any:
    """350,000 elements, more than are read at a time; a third of each source's are the base's."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(700, 500, generator=generator)
    models = {"base": base.bfloat16()}
    for name in CHANGES.sources:
        noise = 0.01 * torch.randn(base.shape, generator=generator)
        models[name] = torch.where(torch.rand(base.shape, generator=generator) < 1 / 3, base, base + noise).bfloat16()
    return memory_pool({model: {NAME: theta} for model, theta in models.items()})


@pytest.fixture(scope="module")
def x(pool: Any) -> torch.Tensor:
    base = pool.tensor("base", NAME).float()
    return torch.stack([pool.tensor(name, NAME).float() - base for name in CHANGES.sources]).reshape(3, -1)


def values_of(measure: statistics.Measure, pool: Any) -> torch.Tensor:
    starts, blocks = zip(*measure.blocks(pool), strict=True)
    assert list(starts) == [0, statistics.CHUNK]
    return torch.cat(blocks)


def test_variance_is_that_over_sources(pool: Any, x: torch.Tensor) -> None:
    expected = x.double().var(0, unbiased=False).float()
    torch.testing.assert_close(values_of(Variance(CHANGES), pool), expected, rtol=2e-6, atol=1e-12)


@given(st.floats(-1, 1, width=32), st.integers(1, 9))
def test_equal_values_vary_by_exactly_nothing(value: float, count: int) -> None:
    rows = torch.full((count, 3), value)
    assert selection.variance(rows, torch.empty_like(rows), torch.empty(3)).tolist() == [0, 0, 0]


def test_nonzero_counts(pool: Any, x: torch.Tensor) -> None:
    difference = statistics.Difference(base="base", source="two", names=(NAME,))
    assert selection.nonzero(pool, difference) == int(x[1].count_nonzero())


def test_energies_are_sums_of_squares(pool: Any, x: torch.Tensor) -> None:
    whole = x.double().square().sum(1).tolist()
    assert selection.energies(pool, CHANGES, None) == pytest.approx(whole, rel=1e-12)
    rank = 100_000
    cut = rank_tables.ranked(pool, Variance(CHANGES), [rank])[rank]
    order = values_of(Variance(CHANGES), pool).sort(descending=True, stable=True).indices
    some = x[:, order[:rank]].double().square().sum(1).tolist()
    select = Trim(threshold=cut.magnitude, last_tie=cut.index)
    assert selection.energies(pool, CHANGES, select) == pytest.approx(some, rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.01])
def test_overlaps_tell_what_one_source_changed_alone(pool: Any, x: torch.Tensor, epsilon: float) -> None:
    epsilon = float(torch.tensor(epsilon))
    active = (x.abs() > epsilon).int()
    found = selection.overlaps(pool, CHANGES, epsilon)
    assert list(found.unique) == [int(((active.sum(0) == 1) & (row == 1)).sum()) for row in active]
    assert [a + b for a, b in zip(found.unique, found.common, strict=True)] == active.sum(1).tolist()


def test_divergences_are_those_of_rows(pool: Any) -> None:
    p, q = (torch.distributions.Categorical(logits=pool.tensor(m, NAME).double()) for m in ("one", "base"))
    expected = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(selection.divergences(pool, "base", "one", NAME).double(), expected, rtol=1e-6, atol=0)


def test_importance_is_a_change_times_its_rows_divergence(pool: Any, x: torch.Tensor) -> None:
    rows = selection.divergences(pool, "base", "one", NAME).repeat_interleave(500)
    found = values_of(Importance(base="base", source="one", name=NAME), pool)
    assert torch.equal(found, x[0].abs() * rows)
