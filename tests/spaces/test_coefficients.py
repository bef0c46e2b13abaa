"""Coefficients found elsewhere as the start of a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.config import ParameterSpaceConfig
from evomerge.errors import ConfigError
from evomerge.recipe import DEPTH_ROLES, EDGE_ROLES
from evomerge.spaces import ParameterSpace
from evomerge.spaces.knots import fit_knots, over_depth

EXPERTS = ("rev", "sort")
FINE = {role: [role] for role in DEPTH_ROLES}


def space_of(records: list[dict[str, Any]], layers: int, **changes: Any) -> ParameterSpace:
    data = {"kind": "parameter", "operator": {"name": "task_arithmetic"}, "knots": 2, "genes": {"weight": {}}}
    config = ParameterSpaceConfig.model_validate(data | {"start_from": records} | changes)
    return ParameterSpace(config, base="base", experts=EXPERTS, layers=layers, dtype="float32", seed=0)


def everywhere(layers: int, value: float = 0.25, **changes: Any) -> list[dict[str, Any]]:
    return [{"expert": e, "layer": at, "value": value, **changes} for e in EXPERTS for at in range(layers)]


def faults_of(records: list[dict[str, Any]], layers: int = 3, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        space_of(records, layers, **changes)
    return [str(fault) for fault in caught.value.faults]


unit = st.floats(0, 1).map(lambda value: round(value, 6))


@settings(deadline=None)
@given(st.data())
def test_with_enough_genes_every_coefficient_arrives(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 5))
    places: list[tuple[Any, Any]] = [(role, at) for role in DEPTH_ROLES for at in range(layers)]
    places += [(role, None) for role in EDGE_ROLES]
    field = {(e, role, at): data.draw(unit) for e in EXPERTS for role, at in places}
    records = [{"expert": e, "role": role, "layer": at, "value": value} for (e, role, at), value in field.items()]
    space = space_of(data.draw(st.permutations(records)), layers, knots="layer", groups=FINE)
    weights = space.decode(space.start).parameter("weight")
    for (expert, role, at), value in field.items():
        assert weights.at(role, at)[EXPERTS.index(expert)] == pytest.approx(value, abs=2e-6)


@given(
    st.integers(1, 12).flatmap(lambda layers: st.tuples(st.just(layers), st.lists(unit, min_size=1, max_size=layers)))
)
def test_knots_come_back_from_their_own_profile(case: tuple[int, list[float]]) -> None:
    layers, knots = case
    assert fit_knots(over_depth(knots, layers), len(knots)) == pytest.approx(knots, abs=1e-9)


@given(st.lists(unit, min_size=3, max_size=9), st.integers(1, 3), st.integers(0, 2), st.sampled_from([-1e-3, 1e-3]))
def test_no_other_knots_are_closer(profile: list[float], count: int, moved: int, step: float) -> None:
    def error(knots: list[float]) -> float:
        return float(np.sum(np.square(np.subtract(over_depth(knots, len(profile)), profile))))

    best = fit_knots(profile, count)
    other = [value + step * (index == moved % count) for index, value in enumerate(best)]
    assert error(best) <= error(other)


def test_modules_that_share_genes_start_from_their_mean() -> None:
    values = {"attention": 0.2, "mlp": 0.4, "norm": 0.9}
    records = [record for role, value in values.items() for record in everywhere(3, value, role=role)]
    starts = [gene.start for gene in space_of(records, 3).genes if ".block." in gene.name]
    assert starts == pytest.approx([0.5] * 4)


def test_what_is_left_out_keeps_its_own_start_and_the_rest_is_clipped() -> None:
    genes: dict[str, Any] = {"weight": {"high": 0.5, "start": 0.1}, "lambda": {}}
    space = space_of([*everywhere(3, 0.75), {"expert": "rev", "role": "head", "value": 0.3}], 3, genes=genes)
    start = {gene.name: gene.natural(gene.start) for gene in space.genes}
    assert start["weight.block.rev.k0"] == 0.5
    assert start["weight.head.rev"] == pytest.approx(0.3)
    assert start["weight.head.sort"] == pytest.approx(0.1)
    assert start["weight.embed.rev"] == pytest.approx(0.1)
    assert start["lambda.block.k1"] == pytest.approx(1.0)


def test_shared_parameters_have_no_expert() -> None:
    genes: dict[str, Any] = {"weight": {}, "lambda": {}}
    records = [{"parameter": "lambda", "layer": at, "value": 0.5 + 0.25 * at} for at in range(3)]
    space = space_of(records, 3, genes=genes)
    weights = space.decode(space.start).parameter("lambda")
    assert [weights.at("mlp", at)[0] for at in range(3)] == pytest.approx([0.5, 0.75, 1.0])
    assert any("lambda is shared" in fault for fault in faults_of([{**records[0], "expert": "rev"}], genes=genes))


def test_missing_layers_and_experts_are_named() -> None:
    found = faults_of([record for record in everywhere(4) if record["layer"] not in (1, 3)], layers=4)
    assert len(found) == len(EXPERTS) * len(DEPTH_ROLES)
    assert "$.space.start_from: weight of sort: no value for mlp in layer(s) 1, 3; give one for every layer" in found
    found = faults_of([record for record in everywhere(3) if record["expert"] == "rev"])
    assert all("weight of sort" in fault and "0, 1, 2" in fault for fault in found)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"expert": "rve", "layer": 0}, "$.space.start_from[6]: expected an expert of the pool (rev, sort); got 'rve'"),
        ({"layer": 0}, "got None"),
        ({"expert": "rev", "layer": 3}, "expected a layer from 0 to 2; got 3"),
        ({"expert": "rev", "layer": 2, "role": "mlp"}, "rev, layer 2, mlp has two values; keep one"),
    ],
)
def test_misplaced_values_are_refused(wrong: dict[str, Any], expected: str) -> None:
    assert any(expected in fault for fault in faults_of([*everywhere(3), {"value": 0.5, **wrong}]))


def test_values_that_no_gene_takes_are_refused() -> None:
    genes = {"weight": {"edges": "first"}}
    assert space_of(everywhere(3), 3, genes=genes)
    found = faults_of([*everywhere(3), {"expert": "rev", "role": "head", "value": 0.5}], genes=genes)
    assert len(found) == 1
    assert "$.space.start_from[6]: head has no genes of its own" in found[0]
    assert "set $.space.genes.weight.edges to own" in found[0]
