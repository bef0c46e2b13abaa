"""Fisher merging and OTA against loops over single elements, and order statistics against sorting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.transforms.curvature import fisher, ota
from evomerge.merging.transforms.order import order_statistics

Tensors = dict[str, torch.Tensor]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def taus(*shape: int, experts: int = 3) -> Tensors:
    return {f"e{k}": 1e-3 * random(*shape, seed=k) for k in range(experts)}


def curvatures(*shape: int, experts: int = 3) -> Tensors:
    return {f"e{k}": 1e-11 * random(*shape, seed=50 + k) ** 2 for k in range(experts)}


def columns(tensors: Tensors) -> list[tuple[float, ...]]:
    """The values of all experts at each element."""
    return [*zip(*(tensor.double().reshape(-1).tolist() for tensor in tensors.values()), strict=True)]


def plain_weighted(deltas: Tensors, weights: list[tuple[float, ...]]) -> list[list[float]]:
    made = []
    for taus, own in zip(columns(deltas), weights, strict=True):
        total = math.fsum(own)
        made.append([tau * w / total if total else 0.0 for tau, w in zip(taus, own, strict=True)])
    return made


def assert_close(made: Tensors, wanted: list[list[float]]) -> None:
    stacked = torch.stack([tensor.reshape(-1) for tensor in made.values()], 1).double()
    torch.testing.assert_close(stacked, torch.tensor(wanted).double(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (1, 1), (2, 3, 4)])
def test_fisher_weighs_element_by_element(shape: tuple[int, ...]) -> None:
    deltas, own = taus(*shape), curvatures(*shape)
    mean = torch.stack([*own.values()]).double().mean().item()
    weights = [tuple(max(f, 1e-8 * mean) for f in column) for column in columns(own)]
    assert_close(fisher(deltas, own), plain_weighted(deltas, weights))


def test_equal_fisher_information_gives_the_average() -> None:
    deltas, (own, *_) = taus(4, 6), curvatures(4, 6).values()
    for scale in (1.0, 1e-20, 0.0):
        for expert, made in fisher(deltas, dict.fromkeys(deltas, scale * own)).items():
            torch.testing.assert_close(made, deltas[expert] / 3)


def test_where_one_expert_alone_has_information_it_is_kept_whole() -> None:
    deltas = taus(1, 3, experts=2)
    own = {"e0": torch.tensor([[1e-9, 0.0, 0.0]]), "e1": torch.tensor([[0.0, 1e-9, 0.0]])}
    merged = sum(fisher(deltas, own).values())
    wanted = torch.tensor([[deltas["e0"][0, 0], deltas["e1"][0, 1], (deltas["e0"] + deltas["e1"])[0, 2] / 2]])
    torch.testing.assert_close(merged, wanted, rtol=1e-6, atol=1e-9)


def plain_mask(tau: torch.Tensor, moment: torch.Tensor, density: float) -> list[bool]:
    scores = (moment * tau**2).reshape(-1).tolist()
    cut = sorted(scores, reverse=True)[max(1, round(density * len(scores))) - 1]
    return [score >= cut and score > 0 for score in scores]


@pytest.mark.parametrize("shape", [(5,), (4, 6), (1, 1), (20, 30)])
@pytest.mark.parametrize("density", [0.01, 0.4, 1.0])
def test_ota_masks_then_weighs(shape: tuple[int, ...], density: float) -> None:
    deltas, own = taus(*shape), curvatures(*shape)
    masks = [*zip(*(plain_mask(tau, own[expert], density) for expert, tau in deltas.items()), strict=True)]
    weights = [
        tuple((math.sqrt(v) + 1e-26) * kept for v, kept in zip(column, mask, strict=True))
        for column, mask in zip(columns(own), masks, strict=True)
    ]
    assert_close(ota(deltas, own, density), plain_weighted(deltas, weights))


def test_ota_keeps_its_density_and_leaves_the_rest_to_the_others() -> None:
    deltas, own = taus(40, 50, experts=2), curvatures(40, 50, experts=2)
    made = ota(deltas, own, 0.25)
    assert [int((delta != 0).sum()) for delta in made.values()] == [500, 500]
    alone = (made["e0"] != 0) & (made["e1"] == 0)
    assert torch.equal(made["e0"][alone], deltas["e0"][alone])


def test_unchanged_weights_take_no_part() -> None:
    deltas, own = taus(4, 5, experts=2), curvatures(4, 5, experts=2)
    deltas["e0"][:, :3] = 0
    torch.testing.assert_close(ota(deltas, own, 1.0)["e1"][:, :3], deltas["e1"][:, :3])


@given(
    shape=st.sampled_from([(1,), (1, 4), (3, 5)]),
    experts=st.integers(1, 4),
    scale=st.sampled_from([0.0, 1e-30, 1e-12, 1.0, 1e20]),
    change=st.sampled_from([0.0, 1e-12, 1e-3]),
)
def test_whatever_the_curvature_the_result_is_finite_and_no_larger(
    shape: tuple[int, ...], experts: int, scale: float, change: float
) -> None:
    deltas = {expert: change * tau for expert, tau in taus(*shape, experts=experts).items()}
    own = {expert: scale * f for expert, f in curvatures(*shape, experts=experts).items()}
    for made in (fisher(deltas, own), ota(deltas, own, 0.4)):
        for one, delta in zip(made.values(), deltas.values(), strict=True):
            assert one.isfinite().all()
            assert (one.abs() <= delta.abs() * (1 + 1e-6)).all()


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(rows=st.lists(st.lists(numbers, min_size=9, max_size=9), min_size=1, max_size=3), cut=st.integers(0, 9))
def test_order_statistics_are_those_of_sorting(rows: list[list[float]], cut: int) -> None:
    matrix = torch.tensor(rows)
    found = order_statistics(lambda: iter([matrix[:, :cut], matrix[:, cut:]]), [0, 3, 3, 8])
    assert torch.equal(found, matrix.sort(dim=1).values[:, [0, 3, 3, 8]])


def test_order_statistics_of_many_parts() -> None:
    matrix = random(2, 600_000, seed=0).bfloat16().float()
    ranks = [0, 1, 299_999, 540_000, 599_999]
    found = order_statistics(lambda: iter([matrix[:, :350_000], matrix[:, 350_000:]]), ranks)
    assert torch.equal(found, matrix.sort(dim=1).values[:, ranks])
