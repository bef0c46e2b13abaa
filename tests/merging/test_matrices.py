"""Flattened spectra against singular value decompositions, whole matrices through plans and oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging import matrices
from evomerge.merging.executor import execute, execute_into
from evomerge.merging.operators import lower
from evomerge.merging.plan import Copy, Delta, Isotropic
from evomerge.merging.reference import reference_merge
from evomerge.recipe import OPERATORS, Field, Recipe

EPSILON = matrices.EPSILON


def matrix(rows: int, columns: int, singular: list[float], seed: int = 0) -> torch.Tensor:
    """A random matrix with given singular values, fp64."""
    random = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=random).double())[0] for n in (rows, columns))
    return torch.as_tensor(u[:, : len(singular)] * torch.tensor(singular).double() @ v[: len(singular)])


def exact(change: torch.Tensor, cut: float) -> torch.Tensor:
    u, s, v = torch.linalg.svd(change.double(), full_matrices=False)
    kept = s > cut
    return torch.as_tensor(u[:, kept] @ v[kept] * s[kept].sum() / len(s))


def spectrum(values: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(torch.linalg.svdvals(values.double()))


SINGULAR = st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=9)


@given(SINGULAR, st.integers(0, 8), st.integers(0, 8), st.integers(0, 99))
def test_equals_the_decomposition(singular: list[float], tall: int, wide: int, seed: int) -> None:
    change = matrix(len(singular) + tall, len(singular) + wide, singular, seed).float()
    expected = exact(change, 1e-6)
    # Where both sides are longer than the rank, all that fp32 rounding adds must stay zero.
    torch.testing.assert_close(matrices.flattened(change, 1e-6).double(), expected, rtol=0, atol=2e-4 * max(singular))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (24, 24), (1, 7), (7, 1), (1, 1)])
def test_all_singular_values_become_their_mean(shape: tuple[int, int]) -> None:
    change = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    flat = matrices.flattened(change, 0.0)
    mean = spectrum(change).mean()
    torch.testing.assert_close(spectrum(flat), mean.expand(min(shape)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("singular", [[1.0] * 6, [1.0, 0.9, 0.5, 0.1, 0.01], [1.0, 1e-3, 1e-4, 1e-5], [3e4, 1.0]])
def test_the_iteration_reaches_orthonormal_rows(singular: list[float]) -> None:
    change = matrix(len(singular), 20, singular).float()
    factor = matrices.newton_schulz(change)
    torch.testing.assert_close(factor @ factor.T, torch.eye(len(singular)), rtol=0, atol=4e-6)
    u, _, v = torch.linalg.svd(change.double(), full_matrices=False)
    torch.testing.assert_close(factor.double(), u @ v, rtol=0, atol=20 * EPSILON * max(singular) / min(singular))


def test_both_ways_agree() -> None:
    change = torch.randn(48, 80, generator=torch.Generator().manual_seed(2))
    cut = EPSILON * float(change.norm())
    iterated = matrices._by_iteration(change, cut)
    assert iterated is not None
    torch.testing.assert_close(iterated, matrices.flattened(change, 0.0), rtol=1e-4, atol=1e-5)


def test_the_iteration_gives_up_where_values_count_as_zero() -> None:
    assert matrices._by_iteration(matrix(8, 12, [1.0] * 5).float(), 1e-6) is None
    change = matrix(4, 12, [1.0, 0.9, 0.8, 1e-3]).float()
    assert matrices._by_iteration(change, 1e-2) is None
    assert matrices._by_iteration(change, 1e-4) is not None


def test_directions_below_the_noise_stay_zero() -> None:
    change = matrix(20, 30, [1.0, 0.5, 1e-4])
    flat = matrices.flattened(change.float(), 1e-3)
    torch.testing.assert_close(spectrum(flat)[:3], torch.tensor([1.5 / 20, 1.5 / 20, 0.0]).double(), rtol=0, atol=1e-6)
    assert matrices.flattened(torch.zeros(3, 5), 0.0).count_nonzero() == 0
    assert matrices.flattened(change.float(), 2.0).count_nonzero() == 0


def recipe(layers: int = 1, *, weight: tuple[float, ...] = (1.0, 0.5), scale: float = 1.3, **changes: Any) -> Recipe:
    fields = {"weight": Field.constant(weight, layers), "lambda": Field.constant([scale], layers)}
    whole: dict[str, Any] = {"options": (), "sources": ("one", "two"), "dtype": "float32", **changes}
    return Recipe(operator="iso_c", base="base", parameters=tuple(sorted(fields.items())), **whole)


def models(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> dict[str, dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(3)
    base = {name: 0.1 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    noise = {
        model: {name: theta + 0.01 * torch.randn(theta.shape, generator=random) for name, theta in base.items()}
        for model in ("one", "two")
    }
    return {
        model: {name: theta.to(dtype) for name, theta in held.items()}
        for model, held in {"base": base, **noise}.items()
    }


SHAPES = {
    "model.embed_tokens.weight": (30, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.0.mlp.experts.down_proj": (3, 8, 12),
    "model.layers.0.input_layernorm.weight": (8,),
    "lm_head.weight": (30, 8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_oracle(memory_pool: Callable[..., Any], dtype: torch.dtype) -> None:
    pool = memory_pool(models(SHAPES, dtype))
    wanted = dict(reference_merge(recipe(), pool))
    for name, got in execute(lower(recipe(), pool), pool):
        torch.testing.assert_close(got.double(), wanted[name], rtol=1e-5, atol=1e-6)


def test_which_tensors_are_matrices(memory_pool: Callable[..., Any]) -> None:
    pool = memory_pool(models(SHAPES))
    kernels = {tensor.name: tensor.kernel for tensor in lower(recipe(), pool).tensors}
    flat = {name for name, kernel in kernels.items() if isinstance(kernel, Isotropic)}
    assert flat == {name for name in SHAPES if "proj" in name}
    mean = kernels["model.layers.0.input_layernorm.weight"]
    assert isinstance(mean, Delta)
    assert (mean.divisor, mean.scale) == (2.0, 1.3)
    for nothing in (recipe(scale=0.0), recipe(weight=(0.0, 0.0))):
        assert {tensor.kernel for tensor in lower(nothing, pool).tensors} == {Copy(source="base")}


def test_a_stack_is_merged_matrix_by_matrix(memory_pool: Callable[..., Any]) -> None:
    name = "model.layers.0.mlp.experts.down_proj"
    held = models({name: (3, 8, 12)})
    ((_, stack),) = execute(lower(recipe(), pool := memory_pool(held)), pool)
    for place in range(3):
        alone = memory_pool({model: {name: theta[name][place]} for model, theta in held.items()})
        ((_, one),) = execute(lower(recipe(), alone), alone)
        assert torch.equal(stack[place], one)


def test_into_tensors_of_any_strides(memory_pool: Callable[..., Any]) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    pool = memory_pool(models({name: (8, 12)}))
    plan = lower(recipe(dtype="bfloat16"), pool)
    out = torch.zeros(12, 8).T
    execute_into(plan, pool, {name: out})
    assert torch.equal(out, dict(execute(plan, pool))[name].float())


def test_inputs_are_not_written_to(memory_pool: Callable[..., Any]) -> None:
    held = models(SHAPES)
    before = {model: {name: theta.clone() for name, theta in thetas.items()} for model, thetas in held.items()}
    list(execute(lower(recipe(), pool := memory_pool(held)), pool))
    for model, thetas in before.items():
        assert all(torch.equal(theta, held[model][name]) for name, theta in thetas.items())


def test_the_paper_adds_task_vectors_with_weights_of_one() -> None:
    assert OPERATORS["iso_c"].parameters["weight"].default == 1.0
