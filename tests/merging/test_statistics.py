from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from evomerge.merging import rank_tables, statistics

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]


def family(sizes: list[int], seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(spread: float, size: int) -> torch.Tensor:
        return spread * torch.randn(size, generator=generator)

    base = {f"layers.0.mlp.{i}": draw(0.02, size).to(dtype) for i, size in enumerate(sizes)}
    expert = {name: (values.float() + draw(0.001, len(values))).to(dtype) for name, values in base.items()}
    return {"base": base, "expert": expert}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("sizes", [[1], [5000], [1000, 3, 1], [400_000], [200_000, 150_001]], ids=str)
def test_ranks_equal_a_stable_sort(memory_pool: MakePool, sizes: list[int], dtype: torch.dtype) -> None:
    tensors = family(sizes, dtype=dtype)
    names = tuple(tensors["base"])
    x = torch.cat([tensors["expert"][name].float() - tensors["base"][name].float() for name in names])
    order = torch.sort(x.abs(), descending=True, stable=True)
    size = sum(sizes)
    ranks = sorted({1, size, *(max(1, int(share * size)) for share in (0.01, 0.3, 0.31, 0.9999))})
    difference = statistics.Difference(base="base", source="expert", names=names)
    found = rank_tables.ranked(memory_pool(tensors), difference, ranks)
    assert {rank: (at.magnitude, at.index) for rank, at in found.items()} == {
        rank: (float(order.values[rank - 1]), int(order.indices[rank - 1])) for rank in ranks
    }


def test_ranks_among_many_zeros_cost_little_memory(memory_pool: MakePool) -> None:
    x = torch.zeros(1 << 20)
    x[::10] = torch.randn(len(x[::10]), generator=torch.Generator().manual_seed(0))
    x[7] = 1e-40  # beside the zeros in its bin
    name = "layers.0.mlp.w"
    pool = memory_pool({"base": {name: torch.zeros_like(x)}, "expert": {name: x}})
    order = torch.sort(x.abs(), descending=True, stable=True)
    changed = int(x.count_nonzero())
    ranks = [1, changed - 1, changed, changed + 1, changed + 2, len(x) // 2, len(x)]
    difference = statistics.Difference(base="base", source="expert", names=(name,))
    found = rank_tables.ranked(pool, difference, ranks)
    assert {rank: (at.magnitude, at.index) for rank, at in found.items()} == {
        rank: (float(order.values[rank - 1]), int(order.indices[rank - 1])) for rank in ranks
    }


def test_the_sum_and_the_largest_of_the_magnitudes(memory_pool: MakePool) -> None:
    tensors = family([300_001])
    name, *_ = tensors["base"]
    x = (tensors["expert"][name].float() - tensors["base"][name].float()).double().abs()
    pool, difference = memory_pool(tensors), statistics.Difference(base="base", source="expert", names=(name,))
    assert statistics.l1(pool, difference) == pytest.approx(float(x.sum()), rel=1e-12)
    assert statistics.largest(pool, difference) == float(x.max())
