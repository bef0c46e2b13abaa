"""The evolution strategy on paths: what its moves keep, what it finds, and that a run of it can be replayed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from evomerge.config import AlgorithmConfig, SpaceConfig
from evomerge.pareto import nondominated
from evomerge.population import Algorithm, Evaluation, Problem, build_algorithm
from evomerge.population.moves import moved
from evomerge.recipe import Hop
from evomerge.spaces import Genome, Models, build_space
from evomerge.spaces.paths import Route
from evomerge.spaces.routing import RoutingSpace

ALGORITHM: TypeAdapter[Any] = TypeAdapter(AlgorithmConfig)
SPACE: TypeAdapter[Any] = TypeAdapter(SpaceConfig)
MERGE = {
    "kind": "parameter",
    "operator": {"name": "task_arithmetic"},
    "knots": 1,
    "genes": {"weight": {"edges": "first"}},
}
SPACES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scales": {}},
    "aligned": {"aligned": True},
    "joint": {"scales": {}, "merge": MERGE},
    "one model": {"models": ["base"], "fewest": 8},
}
WANTED = tuple(Hop(source="rev" if 2 <= layer < 6 else None, layer=layer) for layer in range(8))


def space(name: str) -> RoutingSpace:
    models = Models(base="base", experts=("rev", "sort"), layers=8, dtype="float32")
    found = build_space(SPACE.validate_python({"kind": "routing"} | SPACES[name]), models, seed=0)
    assert isinstance(found, RoutingSpace)
    return found


def build(name: str, *, objectives: int = 1, seed: int = 3, population: int = 12, kind: str = "graft") -> Algorithm:
    config = ALGORITHM.validate_python({"kind": kind, "population": population})
    return build_algorithm(config, Problem(space=space(name), weights=(1.0,) * objectives, seed=seed))


def distance(path: Route) -> float:
    """How far a path is from `WANTED`, the only one that is better than the base; parts of it are worse."""
    sources = [hop.source for hop in path[2:6]]
    whole = [hop.layer for hop in path] == list(range(8)) and sources == ["rev"] * 4
    strangers = sum(hop.source is not None for hop in path)
    crossings = sum(one.source != other.source for one, other in pairwise(path))
    jumps = sum(abs(other.layer - one.layer - 1) for one, other in pairwise(path))
    scales = sum(abs(np.log(hop.scale)) for hop in path)
    return float(strangers + crossings + jumps + abs(len(path) - 8) + scales - 10.0 * whole)


def drive(name: str, algorithm: Algorithm, generations: int, objectives: int = 1) -> list[tuple[Genome, ...]]:
    paths, asked = space(name), []
    for _ in range(generations):
        genomes = algorithm.ask()
        routes = [paths.path_of(genome) for genome in genomes]
        costs = [(distance(route), float(len(route)), -route[0].scale)[:objectives] for route in routes]
        algorithm.tell([Evaluation(genome=g, costs=c) for g, c in zip(genomes, costs, strict=True)])
        asked.append(genomes)
    return asked


@pytest.mark.parametrize("name", SPACES)
class TestEverySpace:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 2**32))
    def test_moves_stay_in_the_space(self, name: str, seed: int) -> None:
        found, random = space(name), np.random.default_rng(seed)
        path = found.path_of(found.start)
        for _ in range(10):
            path = moved(path, found, random)
            assert found.path_of(found.genome_of(path, found.start)) == path

    def test_generations_are_full_and_distinct(self, name: str) -> None:
        algorithm = build(name)
        generations = drive(name, algorithm, 12)
        assert {len(generation) for generation in generations} == {12}
        assert all(len(set(generation)) == 12 for generation in generations)
        assert {len(genome) for generation in generations for genome in generation} == {len(space(name).genes)}

    def test_only_survivors_are_asked_again(self, name: str) -> None:
        generations = drive(name, build(name), 12)
        times = Counter(genome for generation in generations for genome in generation)
        assert sum(times.values()) - len(times) <= 22
        for number, generation in enumerate(generations[1:], start=1):
            assert {*generation[:2]} <= {genome for earlier in generations[:number] for genome in earlier}

    def test_replay_continues_bit_identically(self, name: str) -> None:
        assert drive(name, build(name, objectives=2), 8, 2) == drive(name, build(name, objectives=2), 8, 2)
        assert drive(name, build(name), 3) != drive(name, build(name, seed=4), 3)

    @pytest.mark.parametrize("trouble", [0.0, 1e9, 1e300])
    def test_any_cost_is_survived(self, name: str, trouble: float) -> None:
        algorithm = build(name)
        for generation in range(10):
            costs = [trouble if generation % 2 else float(i) for i in range(12)]
            told = zip(algorithm.ask(), costs, strict=True)
            algorithm.tell([Evaluation(genome=genome, costs=(cost,)) for genome, cost in told])
        assert len(set(algorithm.answer())) == len(algorithm.answer()) == 6


def test_scales_of_joints_go_along_and_others_stay() -> None:
    found, joints = space("scaled"), set[tuple[int, ...]]()
    scales = {1: 0.9, 2: 1.5, 6: 0.7}  # within the base, on the way to the other model, on the way back
    path = tuple(replace(hop, scale=scales.get(hop.layer, 1.0)) for hop in WANTED)
    for seed in range(200):
        after = moved(path, found, np.random.default_rng(seed))
        if [hop.layer for hop in after] != list(range(8)) or {hop.source for hop in after} != {None, "rev"}:
            continue
        borders = {place for place in range(1, 8) if after[place - 1].source != after[place].source}
        if [hop.source for hop in after] == [hop.source for hop in path]:
            continue
        joints.add(tuple(sorted(borders)))
        for place, hop in enumerate(after):
            own = 0.9 if place == 1 and hop.source is None else 1.0
            crossing = 1.5 if hop.source else 0.7
            assert hop.scale == (crossing if place in borders else own)
    assert {(1, 6), (3, 6), (4, 6), (2, 5), (2, 7)} <= joints


def test_copies_of_a_repeated_layer_keep_scales_of_their_own() -> None:
    """Where a run is grafted, all that follows what it followed before has the scale that it had before."""
    found, grafts = space("scaled"), 0
    scaled = [(0, 1.0), (1, 0.9), (2, 0.8), (1, 1.3), (2, 1.2), (3, 1.0), (1, 0.7), (2, 1.1)]
    path = tuple(Hop(source=None, layer=layer, scale=scale) for layer, scale in scaled)
    for seed in range(200):
        after = moved(path, found, np.random.default_rng(seed))
        if len(after) != len(path) or not any(hop.source for hop in after):
            continue
        grafts += 1
        sources = [None, *(hop.source for hop in after)]
        stayed = [place for place in range(len(path)) if sources[place] is sources[place + 1] is None]
        assert [after[place] for place in stayed] == [path[place] for place in stayed]
    assert grafts > 50


@pytest.mark.parametrize("name", ["plain", "scaled", "aligned"])
@pytest.mark.parametrize("seed", range(3))
def test_it_crosses_the_valley_to_another_model(name: str, seed: int) -> None:
    algorithm = build(name, seed=seed)
    drive(name, algorithm, 40)
    path = space(name).path_of(algorithm.answer()[0])
    assert [(hop.source, hop.layer) for hop in path] == [(hop.source, hop.layer) for hop in WANTED]


def test_it_begins_with_the_known_paths() -> None:
    assert set(build("plain").ask()) == set(space("plain").known[:12])
    first = build("plain", population=40).ask()
    assert first[: len(space("plain").known)] == space("plain").known


def test_costs_of_what_is_asked_again_are_averaged() -> None:
    algorithm = build("aligned", population=4)
    genomes = algorithm.ask()
    lucky, solid = genomes[0], genomes[1]
    costs = dict(zip(genomes, (0.0, 1.0, 5.0, 5.0), strict=True))
    algorithm.tell([Evaluation(genome=genome, costs=(costs[genome],)) for genome in genomes])
    assert algorithm.answer() == (lucky, solid)
    again = algorithm.ask()
    assert again[0] == lucky
    algorithm.tell([Evaluation(genome=genome, costs=(4.0 if genome == lucky else 9.0,)) for genome in again])
    assert algorithm.answer() == (solid, lucky)


def test_several_objectives_are_answered_with_the_front_of_the_survivors() -> None:
    algorithm, paths = build("plain", objectives=2), space("plain")
    drive("plain", algorithm, 30, 2)
    costs = [(distance(route), float(len(route))) for route in map(paths.path_of, algorithm.answer())]
    assert nondominated(costs) == list(range(len(costs)))
    assert min(length for _, length in costs) == 6.0
    assert min(cost for cost, _ in costs) < 0.0


def test_a_joint_search_tunes_the_merge_too() -> None:
    found, algorithm = space("joint"), build("joint")
    for _ in range(80):
        genomes = algorithm.ask()
        costs = [
            (sum((value - 0.8) ** 2 for value in genome.values[found.slots :]) + 0.1 * len(found.path_of(genome)),)
            for genome in genomes
        ]
        algorithm.tell([Evaluation(genome=g, costs=c) for g, c in zip(genomes, costs, strict=True)])
    best = algorithm.answer()[0]
    assert best.values[found.slots :] == pytest.approx([0.8, 0.8], abs=0.1)
    assert len(found.path_of(best)) == 6


@pytest.mark.parametrize("kind", ["random", "nsga2", "cat_cma", "sep_cma"])
@pytest.mark.parametrize("name", ["scaled", "aligned", "joint"])
def test_other_algorithms_search_paths(kind: str, name: str) -> None:
    algorithm, paths = build(name, kind=kind), space(name)
    for genome in [genome for generation in drive(name, algorithm, 4) for genome in generation]:
        assert paths.stock.allows(len(paths.path_of(genome)))


def test_other_spaces_are_refused() -> None:
    config = ALGORITHM.validate_python({"kind": "graft"})
    models = Models(base="base", experts=("rev",), layers=4, dtype="float32")
    for keys in (MERGE, {"kind": "indicators"}):
        assert "graft searches spaces of kind routing; got" in str(config.misfit(1, space=keys["kind"]))
        problem = Problem(space=build_space(SPACE.validate_python(keys), models, 0), weights=(1.0,), seed=0)
        with pytest.raises(ValueError, match="graft searches a routing space; got"):
            build_algorithm(config, problem)
