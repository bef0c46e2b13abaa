"""Algorithms that can do without generations: asked for one genome at a time, told in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from evomerge.config import AlgorithmConfig, ParameterSpaceConfig, RoutingSpaceConfig, SoupConfig
from evomerge.population import Evaluation, PopulationManager, Problem, SteadyAlgorithm, build_algorithm
from evomerge.spaces import Genome, Models, SearchSpace, build_space

EXPERTS = ("a", "b", "c")
MODELS = Models(base="base", experts=EXPERTS, layers=4, dtype="float32", products=None)
SPACES: dict[str, Any] = {
    "random": ParameterSpaceConfig.model_validate(
        {"kind": "parameter", "operator": {"name": "task_arithmetic"}, "genes": {"weight": {}}, "knots": 2}
    ),
    "grid": ParameterSpaceConfig.model_validate(
        {
            "kind": "parameter",
            "operator": {"name": "task_arithmetic"},
            "genes": {"weight": {"edges": "first"}},
            "knots": 1,
        }
    ),
    "m2n2": SoupConfig(kind="soup", knots=2),
    "graft": RoutingSpaceConfig(kind="routing"),
}
KEYS: dict[str, dict[str, Any]] = {"grid": {"levels": 3}, "m2n2": {"archive": 5}}
STEADY = [kind for kind, member in AlgorithmConfig.kinds.items() if getattr(member, "steady", False)]


def space(kind: str) -> SearchSpace:
    return build_space(SPACES[kind], MODELS, 0)


def build(kind: str, seed: int = 3) -> SteadyAlgorithm:
    config = TypeAdapter(AlgorithmConfig).validate_python({"kind": kind, "population": 8, **KEYS.get(kind, {})})
    algorithm = build_algorithm(config, Problem(space=space(kind), weights=(1.0, 1.0), seed=seed))
    assert isinstance(algorithm, SteadyAlgorithm)
    return algorithm


def told(genome: Genome) -> Evaluation:
    values = np.array(genome.values)
    costs = tuple(float(np.mean((values - centre) ** 2)) for centre in (0.3, 0.8))
    items = {(k, 0, item): float(item / 24 > cost) for k, cost in enumerate(costs) for item in range(24)}
    return Evaluation(genome=genome, costs=costs, items=items)


def drive(algorithm: SteadyAlgorithm, order: list[int], in_flight: int = 3) -> list[Genome]:
    """Asks of a search in which, at each step, the place in `order` of those in flight is told."""
    flying = [genome for _ in range(in_flight) if (genome := algorithm.ask_one()) is not None]
    asked = list(flying)
    for place in order:
        if not flying:
            break
        algorithm.tell_one(told(flying.pop(place % len(flying))))
        if (genome := algorithm.ask_one()) is not None:
            flying.append(genome)
            asked.append(genome)
    return asked


ORDERS = st.lists(st.integers(0, 5), min_size=1, max_size=24)


@pytest.mark.parametrize("kind", STEADY)
class TestConformance:
    @settings(max_examples=10)
    @given(order=ORDERS)
    def test_equal_orders_give_equal_genomes_of_the_space(self, kind: str, order: list[int]) -> None:
        first, again = drive(build(kind), order), drive(build(kind), order)
        assert first == again
        genes = len(space(kind).genes)
        assert all(len(genome) == genes and all(0.0 <= value <= 1.0 for value in genome.values) for genome in first)

    def test_the_first_genomes_are_those_of_the_first_generation(self, kind: str) -> None:
        one_by_one, together = build(kind), build(kind)
        assert tuple(one_by_one.ask_one() for _ in range(8)) == together.ask()

    def test_what_was_not_asked_or_told_already_is_refused(self, kind: str) -> None:
        algorithm = build(kind)
        genome = algorithm.ask_one()
        assert genome is not None
        algorithm.tell_one(told(genome))
        with pytest.raises(ValueError, match="was not told yet"):
            algorithm.tell_one(told(genome))

    def test_more_in_flight_than_there_are_slots(self, kind: str) -> None:
        asked = drive(build(kind), [3] * 20, in_flight=20)
        assert len(asked) == (27 if kind == "grid" else 40)

    def test_it_answers_with_what_was_told(self, kind: str) -> None:
        algorithm = build(kind)
        assert algorithm.answer() == ()
        asked = drive(algorithm, [0] * 14)
        assert set(algorithm.answer()) <= set(asked[:14])
        assert algorithm.answer()

    def test_it_goes_on_when_everybody_fails(self, kind: str) -> None:
        algorithm = build(kind)
        manager = PopulationManager(algorithm, objectives=2)
        for _ in range(16):
            genome = manager.ask_one()
            assert genome is not None
            manager.tell_one(genome, None, 0.0, {})
        assert manager.generation == 16
        assert manager.answer() == ()


@settings(max_examples=10)
@given(order=ORDERS)
def test_the_order_of_tells_does_not_change_what_random_search_and_grids_ask(order: list[int]) -> None:
    for kind in ("random", "grid"):
        asked = drive(build(kind), order)
        assert asked == drive(build(kind), [0] * len(order))
        assert len(set(asked)) == len(asked)


def test_random_search_asks_what_its_generations_would() -> None:
    steady, by_generations = build("random"), build("random")
    genomes: list[Genome] = []
    for _ in range(3):
        genomes += by_generations.ask()
        by_generations.tell([told(genome) for genome in genomes[-8:]])
    assert drive(steady, [0] * 21) == genomes


def test_a_grid_ends() -> None:
    algorithm = build("grid")
    assert len(drive(algorithm, [0] * 99)) == 3**3
    assert algorithm.ask_one() is None


def test_children_are_bred_from_the_archive_of_the_moment() -> None:
    algorithm = build("m2n2")
    flying = [algorithm.ask_one() for _ in range(len(EXPERTS))]
    assert algorithm.lineage == (None,)
    known: list[Genome] = []
    for _ in range(30):
        genome = flying.pop(0)
        assert genome is not None
        algorithm.tell_one(told(genome))
        known.append(genome)
        flying.append(algorithm.ask_one())
        (crossing,) = algorithm.lineage
        assert crossing is not None
        assert {crossing.first, crossing.second} <= {*known, *build("m2n2")._founders}


def test_nobody_is_evaluated_again_while_a_repeat_is_on_its_way() -> None:
    algorithm = build("graft")
    flying = [algorithm.ask_one() for _ in range(6)]
    repeats, seen = 0, set(flying)
    for _ in range(60):
        genome = flying.pop(0)
        assert genome is not None
        algorithm.tell_one(told(genome))
        fresh = algorithm.ask_one()
        assert fresh not in flying
        repeats += fresh in seen
        seen.add(fresh)
        flying.append(fresh)
    assert repeats >= 5


def test_algorithms_that_need_generations_say_so() -> None:
    config = TypeAdapter(AlgorithmConfig).validate_python({"kind": "cma", "population": 8})
    algorithm = build_algorithm(config, Problem(space=space("random"), weights=(1.0,), seed=0))
    with pytest.raises(TypeError, match="needs generations"):
        PopulationManager(algorithm, objectives=1).ask_one()
