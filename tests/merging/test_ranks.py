from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from evomerge.merging import ranks
from evomerge.merging.keep_rules import RankScope
from evomerge.merging.statistics import Difference

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"
DIFFERENCE = Difference(base="base", source="one", names=(NAME,))


def pool_of(memory_pool: MakePool, x: torch.Tensor) -> Any:
    return memory_pool({"base": {NAME: torch.zeros_like(x)}, "one": {NAME: x}})


def levels_of(pool: Any, scope: RankScope) -> list[int]:
    magnitudes = pool.tensor("one", NAME).reshape(-1).abs()
    found: list[int] = ranks.levels(ranks.table(pool, DIFFERENCE, scope), scope, 0, magnitudes).tolist()
    return found


def test_rows_are_ranked_on_their_own(memory_pool: MakePool) -> None:
    x = torch.tensor([[0.1, -0.4, 0.2, 0.3], [70.0, 0.0, -80.0, 60.0]])
    assert levels_of(pool_of(memory_pool, x), "row") == [0, 255, 85, 170, 170, 0, 255, 85]


def test_equal_magnitudes_of_a_row_rank_by_place(memory_pool: MakePool) -> None:
    assert levels_of(pool_of(memory_pool, torch.tensor([1.0, -1.0, 1.0])), "row") == [255, 128, 0]


@pytest.mark.parametrize("shape", [(), (1,), (3, 1)])
def test_the_only_element_of_a_row_is_its_largest(memory_pool: MakePool, shape: tuple[int, ...]) -> None:
    assert set(levels_of(pool_of(memory_pool, torch.rand(shape)), "row")) == {255}


def test_all_levels_are_used_alike(memory_pool: MakePool) -> None:
    x = torch.randn(1, 2551, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor(levels_of(pool_of(memory_pool, x), "row")).bincount()
    assert counts.tolist() == [5, *[10] * 254, 6]


def test_equal_magnitudes_of_a_tensor_share_their_middle_rank(memory_pool: MakePool) -> None:
    x = torch.tensor([[1.0, -1.0, 0.0, 1.0 + 2.0**-9], [2.0, 4.0, 3.0, 5.0]])
    assert levels_of(pool_of(memory_pool, x), "tensor") == [80, 80, 16, 80, 144, 208, 176, 240]


@pytest.mark.parametrize("scope", ["row", "tensor"])
def test_runs_have_the_levels_of_the_whole(memory_pool: MakePool, scope: RankScope) -> None:
    x = torch.randn(700, 500, generator=torch.Generator().manual_seed(0))
    pool = pool_of(memory_pool, x)
    whole = levels_of(pool, scope)
    table, magnitudes = ranks.table(pool, DIFFERENCE, scope), x.reshape(-1).abs()
    for start, stop in ((0, 10), (262_140, 262_150), (349_990, 350_000)):
        assert ranks.levels(table, scope, start, magnitudes[start:stop]).tolist() == whole[start:stop]
