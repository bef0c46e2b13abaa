"""PCB-Merging against the method on whole flattened models, with sorting, in numpy's fp64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.transforms.competition import Competition
from evomerge.merging.transforms.deltas import deltas_of

Array = npt.NDArray[np.float64]

SHAPES = {"model.embed_tokens.weight": (30, 8), "model.layers.0.mlp.up_proj.weight": (20, 8), "model.norm.weight": (8,)}


def pool_of(make: Callable[..., Any], experts: int, scale: float = 1e-3, seed: int = 0, shapes: Any = None) -> Any:
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or SHAPES
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    changed = {
        f"e{k}": {name: old + scale * torch.randn(old.shape, generator=generator) for name, old in base.items()}
        for k in range(experts)
    }
    return make({"base": base, **changed})


def flat(pool: Any, made: dict[str, dict[str, torch.Tensor]] | None = None) -> Array:
    """`[K, n]`."""
    tensors = made or {spec.name: deltas_of(pool, spec) for spec in pool.specs}
    rows = [torch.cat([tensors[spec.name][expert].reshape(-1) for spec in pool.specs]) for expert in pool.experts]
    return torch.stack(rows).double().numpy()


def transformed(pool: Any, ratio: float) -> Array:
    competition = Competition.of(pool, tuple(spec.name for spec in pool.specs), ratio)
    return flat(pool, {spec.name: competition.apply(deltas_of(pool, spec)) for spec in pool.specs})


def clamped(rows: Array, low: float, high: float) -> Array:
    n = rows.shape[1]
    ordered = np.sort(rows, axis=1)
    first, last = ordered[:, [int(n * low)]], ordered[:, [int(n * high - 1)]]
    return np.asarray(np.clip(rows, first, last))


def scaled(rows: Array) -> Array:
    low, high = rows.min(1, keepdims=True), rows.max(1, keepdims=True)
    return np.asarray((rows - low) / np.where(high > low, high - low, 1))


def plain(x: Array, ratio: float) -> Array:
    magnitudes = clamped(np.abs(x), 1e-4, 1 - 1e-4)
    score = np.exp(len(x) * scaled(magnitudes) ** 2) * np.tanh(x * x.sum(0))
    balance = scaled(clamped(score, 1 - ratio, 1))
    return np.asarray(balance * np.sign(x) * magnitudes / np.maximum(balance.sum(0), 1e-12))


@pytest.mark.parametrize("experts", [1, 2, 4])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5, 1.0])
def test_experts_compete_over_the_flattened_model(memory_pool: Callable[..., Any], experts: int, ratio: float) -> None:
    pool = pool_of(memory_pool, experts)
    np.testing.assert_allclose(transformed(pool, ratio), plain(flat(pool), ratio), rtol=2e-3, atol=1e-8)


def test_tensors_larger_than_a_chunk(memory_pool: Callable[..., Any]) -> None:
    pool = pool_of(memory_pool, 2, shapes={"model.embed_tokens.weight": (700, 500), "model.norm.weight": (70_000,)})
    np.testing.assert_allclose(transformed(pool, 0.1), plain(flat(pool), 0.1), rtol=1e-2, atol=1e-7)


def test_each_expert_wins_its_share_of_the_weights(memory_pool: Callable[..., Any]) -> None:
    pool = pool_of(memory_pool, 3)
    won, n = (transformed(pool, 0.1) != 0).sum(1), 408
    assert all(abs(count - 0.1 * n) <= 2 for count in won)


def test_what_one_expert_alone_wins_it_keeps_whole(memory_pool: Callable[..., Any]) -> None:
    pool = pool_of(memory_pool, 3)
    made, tau = transformed(pool, 0.1), flat(pool)
    alone = (made != 0) & ((made != 0).sum(0) == 1)
    inner = alone & (np.abs(tau) < np.sort(np.abs(tau), axis=1)[:, [-2]])  # the largest is clamped
    np.testing.assert_allclose(made[inner], tau[inner], rtol=1e-6)


def test_many_experts_do_not_overflow(memory_pool: Callable[..., Any]) -> None:
    pool = pool_of(memory_pool, 120, shapes={"model.norm.weight": (50,)})
    made = transformed(pool, 0.1)
    assert np.isfinite(made).all()
    assert (made != 0).any()


@given(
    experts=st.integers(1, 3),
    width=st.integers(1, 6),
    scale=st.sampled_from([0.0, 1e-7, 1.0]),
    ratio=st.sampled_from([0.01, 0.1, 1.0]),
    seed=st.integers(0, 20),
)
def test_whatever_the_task_vectors_the_result_is_finite_and_no_larger(
    *, memory_pool: Callable[..., Any], experts: int, width: int, scale: float, ratio: float, seed: int
) -> None:
    pool = pool_of(memory_pool, experts, scale, seed, shapes={"model.norm.weight": (width,)})
    made = transformed(pool, ratio)
    assert np.isfinite(made).all()
    assert np.abs(made).max() <= np.abs(flat(pool)).max() * (1 + 1e-6)
