from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from evomerge.merging import compiled, masks, ranks
from evomerge.merging.compiled import Compiler, missing
from evomerge.merging.keep_rules import Drop, Prune
from evomerge.merging.kept import kept_l1, kept_l1_from_table
from evomerge.merging.statistics import Difference

MakePool = Callable[[dict[str, dict[str, torch.Tensor]]], Any]
NAME = "layers.0.mlp.w"
NEVER = Compiler(pays_from=math.inf)
DROP = {"one": Drop(seed=11, density=0.3), "two": Drop(seed=12, density=0.9)}
BY_ROW = {"one": Prune(seed=7, density=0.4, epsilon=0.2, ranks="row", inverse=False)}
BY_TENSOR = {"one": Prune(seed=7, density=0.4, epsilon=0.2, ranks="tensor", inverse=False)}
RULES = pytest.mark.parametrize("rules", [DROP, BY_ROW, BY_TENSOR], ids=["drop", "row", "tensor"])


def pool_of(memory_pool: MakePool, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(0)
    models = {name: torch.randn(700, 500, generator=generator) * scale for name in ("base", "one", "two")}
    return memory_pool({name: {NAME: theta.bfloat16()} for name, theta in models.items()})


@RULES
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_is_the_sum_of_the_magnitudes_that_a_mask_keeps(
    memory_pool: MakePool, rules: dict[str, Drop | Prune], scale: float
) -> None:
    pool = pool_of(memory_pool, scale)
    for source, found in kept_l1(pool, "base", rules, NAME, compiler=NEVER).items():
        x = (pool.tensor(source, NAME).float() - pool.tensor("base", NAME).float()).reshape(-1).abs()
        numbers = masks.uniform(rules[source].seed, 0, len(x))
        expected = x[numbers < _densities(pool, source, rules[source], x)].sum(dtype=torch.float64)
        assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def _densities(pool: Any, source: str, rule: Drop | Prune, x: torch.Tensor) -> torch.Tensor | float:
    if isinstance(rule, Drop):
        return rule.density
    table = ranks.table(pool, Difference(base="base", source=source, names=(NAME,)), rule.ranks)
    first, step = masks.ramp(rule.density, rule.epsilon)
    return first + step * ranks.levels(table, rule.ranks, 0, x).double()


@RULES
@pytest.mark.parametrize("density", [0.2, 0.3333, 0.5, 0.8])
def test_a_table_holds_the_same_sums(memory_pool: MakePool, rules: dict[str, Drop | Prune], density: float) -> None:
    pool = pool_of(memory_pool)
    moved = {source: replace(rule, density=density) for source, rule in rules.items()}
    expected = kept_l1(pool, "base", moved, NAME, compiler=NEVER)
    assert {source: kept_l1_from_table(pool, "base", source, moved[source], NAME) for source in moved} == expected


@RULES
@pytest.mark.parametrize("block", [1 << 20, 10_000])
def test_does_not_depend_on_blocks(
    memory_pool: MakePool, rules: dict[str, Drop | Prune], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BLOCK", block)
    pool, uncompiled = pool_of(memory_pool), Compiler(pays_from=0, compile=lambda function, _: function)
    assert kept_l1(pool, "base", rules, NAME, compiler=uncompiled) == kept_l1(pool, "base", rules, NAME, compiler=NEVER)


@pytest.mark.skipif(bool(missing()), reason="no C++ compiler")
@pytest.mark.parametrize("rules", [DROP, BY_ROW], ids=["drop", "row"])
def test_does_not_depend_on_what_is_compiled(memory_pool: MakePool, rules: dict[str, Drop | Prune]) -> None:
    pool, compiler = pool_of(memory_pool), Compiler(pays_from=0)
    assert kept_l1(pool, "base", rules, NAME, compiler=compiler) == kept_l1(pool, "base", rules, NAME, compiler=NEVER)
    assert not compiler.broken
