"""RegMean and WUDI against what they minimise, and against textbook versions in numpy's fp64."""

from __future__ import annotations

from functools import reduce

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.transforms.regression import regmean, wudi

Array = npt.NDArray[np.float64]
Tensors = dict[str, torch.Tensor]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taus(rows: int, columns: int, experts: int = 3) -> Tensors:
    return {f"e{k}": 1e-3 * random(rows, columns, seed=k) for k in range(experts)}


def grams(columns: int, experts: int = 3, tokens: int = 40) -> Tensors:
    inputs = [random(tokens, columns, seed=100 + k).double() for k in range(experts)]
    return {f"e{k}": x.T @ x for k, x in enumerate(inputs)}


def summed(made: Tensors) -> torch.Tensor:
    return reduce(torch.add, made.values())


def average(deltas: Tensors) -> torch.Tensor:
    return reduce(torch.add, (tau.double() for tau in deltas.values())) / len(deltas)


def plain_shrunk(gram: torch.Tensor, factor: float) -> Array:
    g = gram.double().numpy()
    return np.where(np.eye(len(g)) > 0, g, factor * g)


def plain_regmean(deltas: Tensors, grams: Tensors, factor: float) -> list[Array]:
    shrunk = [plain_shrunk(gram, factor) for gram in grams.values()]
    inverse = np.linalg.inv(np.sum(shrunk, axis=0))
    return [tau.double().numpy() @ g @ inverse for tau, g in zip(deltas.values(), shrunk, strict=True)]


@pytest.mark.parametrize("shape", [(4, 6), (9, 5), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.9, 1.0])
def test_regmean_is_its_closed_form(shape: tuple[int, int], factor: float) -> None:
    deltas, own = taus(*shape), grams(shape[1])
    for made, wanted in zip(regmean(deltas, own, factor).values(), plain_regmean(deltas, own, factor), strict=True):
        np.testing.assert_allclose(made.numpy(), wanted, rtol=0, atol=1e-12)


def test_the_sum_of_regmean_minimises_the_error_on_every_experts_inputs() -> None:
    deltas, own = taus(4, 6), grams(6)
    merged = summed(regmean(deltas, own, 1.0)).requires_grad_()
    loss = sum(
        ((error := merged - tau.double()) @ own[expert].double() * error).sum() for expert, tau in deltas.items()
    )
    (gradient,) = torch.autograd.grad(torch.as_tensor(loss), merged)
    assert float(gradient.abs().max()) < 1e-12 * float(summed(own).abs().max())


def test_regmean_of_task_vectors_is_regmean_of_weights() -> None:
    base, deltas, own = random(4, 6, seed=9).double(), taus(4, 6), grams(6)
    weights = {expert: base + tau for expert, tau in deltas.items()}
    torch.testing.assert_close(
        summed(regmean(weights, own, 0.1)), base + summed(regmean(deltas, own, 0.1)), rtol=0, atol=1e-10
    )


def test_equal_grams_give_the_average() -> None:
    deltas, (gram, *_) = taus(4, 6), grams(6).values()
    for expert, made in regmean(deltas, dict.fromkeys(deltas, gram), 0.1).items():
        torch.testing.assert_close(made, deltas[expert].double() / 3, rtol=0, atol=1e-12)


def test_grams_of_zero_give_the_average() -> None:
    deltas = taus(4, 6)
    made = regmean(deltas, dict.fromkeys(deltas, torch.zeros(6, 6)), 0.1)
    torch.testing.assert_close(summed(made), average(deltas), rtol=0, atol=1e-15)


def test_inputs_that_one_expert_alone_has_are_its_own_and_those_of_none_are_averaged() -> None:
    deltas = taus(4, 3, experts=2)
    seen = {"e0": torch.diag(torch.tensor([1.0, 0.0, 0.0])), "e1": torch.diag(torch.tensor([0.0, 1e-3, 0.0]))}
    made = summed(regmean(deltas, seen, 1.0))
    wanted = torch.stack([deltas["e0"][:, 0], deltas["e1"][:, 1], average(deltas)[:, 2]], 1)
    torch.testing.assert_close(made, wanted.double(), rtol=0, atol=1e-12)


def test_an_ill_conditioned_sum_falls_back_to_the_directions_that_are_seen() -> None:
    deltas, noise = taus(4, 2, experts=2), torch.diag(torch.tensor([1.0, 1e-12]))
    made = regmean(deltas, {"e0": noise, "e1": torch.diag(torch.tensor([1.0, 0.0]))}, 1.0)
    torch.testing.assert_close(summed(made), average(deltas), rtol=0, atol=1e-12)


def test_weight_counts_as_often_as_its_inputs() -> None:
    """Twice the tokens of one expert draw the merge towards it."""
    deltas, (gram, *_) = taus(4, 6, experts=2), grams(6).values()
    made = summed(regmean(deltas, {"e0": gram, "e1": 3 * gram}, 1.0))
    torch.testing.assert_close(made, (0.25 * deltas["e0"] + 0.75 * deltas["e1"]).double(), rtol=0, atol=1e-9)


def interference(merged: torch.Tensor, deltas: Tensors) -> torch.Tensor:
    losses = [((merged - tau) @ tau.T).square().sum() / tau.square().sum() for tau in deltas.values()]
    return reduce(torch.add, losses)


@pytest.mark.parametrize("shape", [(4, 6), (9, 5), (7, 7)])
def test_wudi_minimises_interference(shape: tuple[int, int]) -> None:
    deltas = {expert: 1e3 * tau.double() for expert, tau in taus(*shape).items()}
    merged = summed(wudi(deltas, 0.0)).requires_grad_()
    (gradient,) = torch.autograd.grad(interference(merged, deltas), merged)
    assert float(gradient.abs().max()) < 1e-10
    assert interference(merged, deltas) < interference(summed(deltas), deltas)


def test_the_ridge_of_wudi_draws_towards_the_average() -> None:
    deltas = {expert: tau.double() for expert, tau in taus(9, 5).items()}
    merged = summed(wudi(deltas, 0.5)).requires_grad_()
    strength = 0.5 * len(deltas) / 5  # the trace of every normalised Gram matrix is one
    loss = interference(merged, deltas) + strength * (merged - average(deltas)).square().sum()
    (gradient,) = torch.autograd.grad(loss, merged)
    assert float(gradient.abs().max()) < 1e-15
    torch.testing.assert_close(summed(wudi(deltas, 1e9)), average(deltas), rtol=1e-6, atol=0)


def test_wudi_keeps_each_of_two_task_vectors_with_different_inputs() -> None:
    """Rows in orthogonal spaces do not interfere: the merge is their sum."""
    one, other = taus(6, 4, experts=2).values()
    deltas = {"one": torch.cat([one, 0 * one], 1), "other": torch.cat([0 * other, other], 1)}
    torch.testing.assert_close(summed(wudi(deltas, 0.0)), summed(deltas).double(), rtol=0, atol=1e-9)


def test_wudi_of_one_expert_is_that_expert() -> None:
    for shape in ((4, 9), (9, 4)):
        deltas = taus(*shape, experts=1)
        torch.testing.assert_close(wudi(deltas, 1e-3)["e0"], deltas["e0"].double(), rtol=0, atol=1e-9)
        torch.testing.assert_close(wudi(deltas, 0.0)["e0"], deltas["e0"].double(), rtol=0, atol=1e-9)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    experts=st.integers(1, 4),
    rank=st.integers(0, 3),
    tokens=st.integers(0, 8),
    ridge=st.sampled_from([0.0, 1e-8, 1e-3]),
    scale=st.sampled_from([1e-12, 1e-3, 1e3]),
    seed=st.integers(0, 99),
)
def test_whatever_the_task_vectors_and_inputs_the_result_is_finite(
    *, rows: int, columns: int, experts: int, rank: int, tokens: int, ridge: float, scale: float, seed: int
) -> None:
    deltas = {
        f"e{k}": scale * random(rows, rank, seed=seed + k) @ random(rank, columns, seed=seed + k + 50)
        for k in range(experts)
    }
    inputs = {f"e{k}": random(tokens, columns, seed=seed + k + 80) for k in range(experts)}
    own = {expert: x.T @ x for expert, x in inputs.items()}
    for made in (regmean(deltas, own, 0.1), regmean(deltas, own, 1.0), wudi(deltas, ridge)):
        for expert in deltas:
            assert made[expert].shape == (rows, columns)
            assert made[expert].isfinite().all()
