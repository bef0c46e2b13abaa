from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.alarms import ROUNDING, alarms, clusters
from evomerge.merging.cache import folder_of
from evomerge.merging.kinship import Kinship, Products, kinship
from evomerge.merging.pool import ModelPool

Tensors = dict[str, dict[str, torch.Tensor]]
NAMES = [
    "embed_tokens.weight",
    *(f"layers.{i}.{m}.weight" for i in (0, 1) for m in ("self_attn", "mlp", "ln")),
    "norm.weight",
]


class Pool:
    """What is measured of a model pool, from tensors in memory."""

    def __init__(self, memory: Any, dtype: str) -> None:
        self._memory = memory
        self.experts = tuple(name for name in memory.names if name != memory.base)
        self.dtype = dtype

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)


@pytest.fixture
def pool_of(memory_pool: Callable[[Tensors], Any]) -> Callable[..., Any]:
    """`pool_of(one=change, ...)`: a base of random weights, and experts that add to it."""

    def make(dtype: torch.dtype = torch.float32, **changes: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        torch.manual_seed(0)
        base = {name: torch.randn(40, 30).to(dtype) for name in NAMES}
        experts = {
            expert: {name: (values.float() + change(values.float())).to(dtype) for name, values in base.items()}
            for expert, change in changes.items()
        }
        return Pool(memory_pool({"base": base, **experts}), str(dtype).removeprefix("torch."))

    return make


def noise(size: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda values: size * torch.randn_like(values)


def flat(pool: Any, expert: str, names: list[str]) -> torch.Tensor:
    return torch.cat(
        [(pool.tensor(expert, n).float() - pool.tensor("base", n).float()).flatten() for n in names]
    ).double()


def test_norms_cosines_and_conflicts_are_what_they_are_called(pool_of: Callable[..., Any]) -> None:
    pool = pool_of(one=noise(0.1), two=lambda x: noise(0.2)(x) * (x > 0), three=noise(0.05), dtype=torch.bfloat16)
    found = kinship(pool)
    for role, layer in found.cells:
        names = [spec.name for spec in pool.specs if (spec.role, spec.layer) == (role, layer)]
        base = torch.cat([pool.tensor("base", name).double().flatten() for name in names])
        x = [flat(pool, expert, names) for expert in pool.experts]
        cell = found.cells[role, layer]
        for i, one in enumerate(x):
            assert cell.norm(i) == pytest.approx(float(one.norm() / base.norm()))
            for j, other in enumerate(x):
                assert cell.cosine(i, j) == pytest.approx(float(one @ other / (one.norm() * other.norm())), abs=1e-9)
                apart = float((one - other).norm() / max(one.norm(), other.norm()))
                assert cell.distance(i, j) == pytest.approx(apart, abs=1e-7)
        signs = torch.stack(x).sign()
        shared = (signs != 0).sum(0) > 1
        assert (cell.shared, cell.conflicts) == (int(shared.sum()), int((signs.amin(0) * signs.amax(0) < 0).sum()))
        assert 0 < cell.conflict_share < 1


def test_parts_add_up(pool_of: Callable[..., Any]) -> None:
    pool = pool_of(one=noise(0.1), two=noise(0.3))
    found = kinship(pool)
    assert [*found.cells][-2:] == [("embed", None), ("head", None)]
    assert [*found.layers] == [0, 1]
    assert found.total.norm(0) == pytest.approx(
        float(
            flat(pool, "one", NAMES).norm()
            / torch.cat([pool.tensor("base", n).flatten() for n in NAMES]).double().norm()
        )
    )
    outside = found.roles["embed"] + found.roles["head"]
    whole = outside + found.layers[0] + found.layers[1]
    assert whole.shared == found.total.shared
    assert whole.gram[0][1] == pytest.approx(found.total.gram[0][1])


def test_chance_conflicts(pool_of: Callable[..., Any]) -> None:
    found = kinship(pool_of(one=noise(0.1), two=noise(0.1), three=noise(0.1), four=noise(0.1)))
    assert found.total.conflict_share == pytest.approx(1 - 2.0**-3, abs=0.02)


def test_a_measurement_is_remembered(make_family: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    family = make_family(kind="llama", experts=("one", "two", "three"))
    pool = ModelPool.open(family.base, family.experts)
    first = kinship(pool)
    assert 0.01 < first.total.norm(0) < 0.3
    assert abs(first.total.cosine(0, 1)) < 0.1
    monkeypatch.setattr(ModelPool, "tensor", None)  # whatever reads a weight now fails
    assert kinship(pool) == first
    other = ModelPool.open(family.base, dict(list(family.experts.items())[:2]))
    with pytest.raises(TypeError):
        kinship(other)


@pytest.mark.parametrize("damage", ["no cells", "two experts", "old version"])
def test_a_measurement_that_does_not_fit_is_made_again(
    make_family: Callable[..., Any], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = make_family()
    pool = ModelPool.open(family.base, family.experts)
    first = kinship(pool)
    (entry,) = folder_of("kinship").iterdir()
    kept = json.loads(entry.read_text())
    if damage == "no cells":
        kept["cells"] = []
    elif damage == "two experts":
        kept["cells"][0][2]["gram"].append([1.0, 2.0])
    else:
        kept["cells"][0][2]["base"] += 1.0
        monkeypatch.setattr("evomerge.merging.kinship._VERSION", 0)
    entry.write_text(json.dumps(kept))
    assert kinship(pool) == first
    assert kinship(pool) == first


def test_alarms(pool_of: Callable[..., Any]) -> None:
    one = noise(0.02)
    pool = pool_of(
        same=lambda x: x * 0, good=one, tiny=lambda x: 1e-4 * one(x), foreign=noise(1.0), dtype=torch.bfloat16
    )
    found = alarms(kinship(pool))
    assert [line.split(":")[0] for line in found] == ["same", "tiny", "foreign", "foreign"]
    assert "equal to the base" in found[0]
    assert "less than rounding to bfloat16" in found[1]
    assert "times as much as the other experts" in found[2]
    assert re.search("changes attention weights by (1|0.9.|1.0)", found[3])


def test_a_rotated_attention_is_told_from_a_fine_tune(pool_of: Callable[..., Any]) -> None:
    def rotate(values: torch.Tensor) -> torch.Tensor:
        rotation: torch.Tensor = torch.linalg.qr(torch.randn(40, 40))[0]
        return rotation.mm(values) - values

    pool = pool_of(good=noise(0.05), other=noise(0.05), locked=noise(0.05))
    for name in NAMES:
        if "self_attn" in name:
            pool.tensors["locked"][name] = pool.tensor("base", name) + rotate(pool.tensor("base", name))
    found = [line for line in alarms(kinship(pool)) if "attention" in line]
    assert len(found) == 1
    assert re.match("locked: changes attention weights by 1.[345] of", found[0])


def test_duplicates(pool_of: Callable[..., Any]) -> None:
    pool = pool_of(one=noise(0.1), two=noise(0.1), copy=lambda x: x * 0, near=lambda x: x * 0)
    for name in NAMES:
        change = pool.tensor("one", name) - pool.tensor("base", name)
        pool.tensors["copy"][name] = pool.tensor("one", name).clone()
        pool.tensors["near"][name] = pool.tensor("base", name) + 1.004 * change
    found = alarms(kinship(pool))
    assert found[0] == "one: the same as copy (equal in every weight); keep one of them"
    assert [line.split(" (")[0] for line in found] == [
        "one: the same as copy", "one: the same as near", "copy: the same as near",
    ]  # fmt: skip
    assert clusters(kinship(pool)) == [("one", "copy", "near"), ("two",)]


@pytest.mark.parametrize(("dtype", "size"), ROUNDING.items())
def test_what_rounding_destroys(dtype: str, size: float) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = (values.to(getattr(torch, dtype)).double() - values).norm() / values.norm()
    assert float(error) == pytest.approx(size, rel=0.05)


def related(cosines: list[list[float]]) -> Kinship:
    gram = tuple(tuple(1.0 if i == j else row[j] for j in range(len(row))) for i, row in enumerate(cosines))
    cell = Products(base=1000.0, gram=gram, shared=10, conflicts=5)
    return Kinship(experts=tuple("abcdef"[: len(cosines)]), dtype="float32", cells={("mlp", 0): cell})


def test_clusters_chain_and_the_largest_comes_first() -> None:
    cosines = [[0.0] * 5 for _ in range(5)]
    for i, j, cosine in [(1, 3, 0.6), (3, 4, 0.5), (0, 2, 0.49), (0, 1, -0.9)]:
        cosines[i][j] = cosines[j][i] = cosine
    assert clusters(related(cosines)) == [("b", "d", "e"), ("a",), ("c",)]


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=6, max_size=6), min_size=1, max_size=6))
def test_clusters_are_a_partition_that_close_pairs_do_not_cross(rows: list[list[float]]) -> None:
    size = len(rows)
    cosines = [[rows[min(i, j)][max(i, j)] for j in range(size)] for i in range(size)]
    found = related(cosines)
    groups = clusters(found)
    assert sorted(name for group in groups for name in group) == sorted(found.experts)
    home = {name: group for group in groups for name in group}
    for i, one in enumerate(found.experts):
        near = [other for j, other in enumerate(found.experts) if i != j and cosines[i][j] >= 0.5]
        assert set(near) <= set(home[one])
        assert bool(near) == (len(home[one]) > 1)


def test_a_single_expert_and_a_base_of_zeros_are_finite() -> None:
    cell = Products(base=0.0, gram=((4.0,),), shared=0, conflicts=0)
    assert (cell.norm(0), cell.conflict_share) == (2.0, 0.0)
    nothing = Products(base=1.0, gram=((0.0, 0.0), (0.0, 0.0)), shared=0, conflicts=0)
    assert (nothing.cosine(0, 1), nothing.distance(0, 1)) == (0.0, 0.0)
    assert math.isfinite(nothing.norm(0))
