"""MAP: quadratics in place of models, all genes at once or a few experts at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter, ValidationError

from evomerge import config
from evomerge.pareto import hypervolume
from evomerge.population import Algorithm, Evaluation, Problem, build_algorithm
from evomerge.population.amortized import NestedMap, _within
from evomerge.spaces import Genome, ParameterSpace, SearchSpace

CONFIG: TypeAdapter[Any] = TypeAdapter(config.AlgorithmConfig)
Costs = Callable[[Genome], tuple[float, ...]]


def space(experts: int, **weight: float) -> ParameterSpace:
    """One weight for each expert, and a density that nobody's weight is."""
    genes = {"weight": {"low": 0.0, "high": 1.0, "edges": "first", **weight}, "density": {"edges": "first"}}
    return ParameterSpace(
        config.ParameterSpaceConfig.model_validate(
            {"kind": "parameter", "operator": {"name": "ties"}, "knots": 1, "genes": genes}
        ),
        base="base",
        experts=tuple(f"e{number}" for number in range(experts)),
        layers=4,
        dtype="float32",
        seed=0,
    )


class Box:
    """A space of numbers that nothing decodes."""

    def __init__(self, genes: int) -> None:
        self.genes = space(genes).genes[:genes]
        self.start = Genome((0.5,) * genes)

    def decode(self, genome: Genome) -> Any:
        raise NotImplementedError


def build(of: SearchSpace, *, objectives: int = 2, seed: int = 0, **keys: Any) -> Algorithm:
    problem = Problem(space=of, weights=(1.0,) * objectives, seed=seed)
    return build_algorithm(CONFIG.validate_python({"kind": "map", **keys}), problem)


def drive(algorithm: Algorithm, evaluations: int, costs: Costs) -> list[Evaluation]:
    told: list[Evaluation] = []
    while len(told) + algorithm.population <= evaluations:
        generation = [Evaluation(genome=genome, costs=costs(genome)) for genome in algorithm.ask()]
        algorithm.tell(generation)
        told += generation
    return told


def sphere(genome: Genome) -> tuple[float, ...]:
    return (float(np.sum((np.array(genome.values) - 0.3) ** 2)),)


def two_spheres(genome: Genome) -> tuple[float, ...]:
    return tuple(float(np.mean((np.array(genome.values) - centre) ** 2)) for centre in (0.3, 0.8))


FRONT = 0.3**2 - 0.5**4 / 6
"""The box up to the reference, less what lies under the true front (s^2, (1/2 - s)^2)."""


@pytest.mark.parametrize("acquisition", ["mean", "improvement"])
class TestMap:
    def test_a_quadratic_is_solved_soon_after_it_is_known(self, acquisition: str) -> None:
        algorithm = build(Box(3), objectives=1, population=10, acquisition=acquisition)
        drive(algorithm, 50, sphere)
        assert sphere(algorithm.answer()[0])[0] < 1e-3

    def test_only_verified_genomes_answer(self, acquisition: str) -> None:
        algorithm = build(Box(4), acquisition=acquisition)
        told = {evaluation.genome for evaluation in drive(algorithm, 100, two_spheres)}
        assert set(algorithm.answer()) <= told

    def test_failures_do_not_spoil_the_models(self, acquisition: str) -> None:
        def failing(genome: Genome) -> tuple[float, ...]:
            return (1e9, 1e9) if genome.values[0] > 0.6 else two_spheres(genome)

        algorithm = build(Box(4), acquisition=acquisition)
        told = drive(algorithm, 200, failing)
        assert sum(evaluation.costs[0] == 1e9 for evaluation in told[-100:]) < 50
        assert hypervolume([failing(genome) for genome in algorithm.answer()], (0.3, 0.3)) > 0.5 * FRONT


def test_many_genes_are_refused() -> None:
    with pytest.raises(ValueError, match="map takes at most 8 genes; got 9"):
        build(Box(9))


class TestNested:
    TARGET = np.random.default_rng(0).uniform(0.2, 0.8, 16)

    def apart(self, genome: Genome) -> tuple[float, float]:
        """Two halves of the experts' weights that do not disturb each other."""
        experts = len(genome) // 2
        squares = (np.array(genome.values[:experts]) - self.TARGET[:experts]) ** 2
        return float(squares[::2].mean()), float(squares[1::2].mean())

    @pytest.mark.parametrize("acquisition", ["mean", "improvement"])
    @pytest.mark.parametrize("size", [2, 4])
    def test_many_experts_are_merged_by_few_candidates(self, size: int, acquisition: str) -> None:
        of = space(16)
        algorithm = build(of, nested=size, acquisition=acquisition)
        told = drive(algorithm, 240, self.apart)
        assert sum(self.apart(algorithm.answer()[0])) < 0.1 * sum(self.apart(of.start))
        assert set(algorithm.answer()) <= {evaluation.genome for evaluation in told}

    def test_a_level_merges_neighbours_and_the_next_scales_their_merges(self) -> None:
        algorithm = build(space(5), nested=2, population=12)
        told = [evaluation.genome.values for evaluation in drive(algorithm, 24, self.apart)]
        assert {tuple(np.flatnonzero(row[:5]).tolist()) for row in told} == {(0, 1), (2, 3)}
        later = np.array([e.genome.values for e in drive(algorithm, 12, self.apart)])
        assert (later[:, 4] == 0).all()  # the fifth has no neighbour yet
        for one, other in ((0, 1), (2, 3)):
            merge = later[0, [one, other]]
            assert np.outer(later[:, one], merge[1]) == pytest.approx(np.outer(later[:, other], merge[0]))
            assert any(row[one] * merge[1] == pytest.approx(row[other] * merge[0]) for row in told)
        last = np.array([e.genome.values for e in drive(algorithm, 12, self.apart)])
        assert (last[:, 4] > 0).all()

    def test_other_genes_stay_as_they_are(self) -> None:
        of = space(4)
        densities = {e.genome.values[4:] for e in drive(build(of, nested=2), 100, self.apart)}
        assert densities == {of.start.values[4:]}

    def test_negative_weights_are_searched_too(self) -> None:
        of = space(4, low=-1.0, high=1.0)
        target = np.array([-0.5, 0.6, 0.3, -0.2])

        def cost(genome: Genome) -> tuple[float]:
            return (float(np.sum((2 * np.array(genome.values[:4]) - 1 - target) ** 2)),)

        algorithm = build(of, objectives=1, nested=2)
        drive(algorithm, 120, cost)
        assert cost(algorithm.answer()[0])[0] < 0.02

    @pytest.mark.parametrize("acquisition", ["mean", "improvement"])
    @pytest.mark.parametrize("trouble", [0.0, 1e300])
    def test_replay_is_bit_identical_whatever_is_told(self, trouble: float, acquisition: str) -> None:
        one, same = (build(space(5), nested=2, population=7, acquisition=acquisition) for _ in range(2))

        def costs(genome: Genome) -> tuple[float, ...]:
            return (trouble, trouble) if genome.values[0] > 0.4 else self.apart(genome)

        told = drive(one, 63, costs)
        assert [evaluation.genome for evaluation in drive(same, 63, costs)] == [e.genome for e in told]
        assert one.answer() == same.answer()
        assert all(len(genome) == len(space(5).genes) for genome in one.ask())

    @settings(max_examples=12)
    @given(st.integers(2, 9), st.integers(2, 8), st.integers(4, 30))
    def test_generations_are_full_and_in_the_box(self, experts: int, size: int, population: int) -> None:
        rng = np.random.default_rng(experts)
        inputs = [Genome(tuple(row)) for row in rng.uniform(0, 1, (experts, 3)).tolist()]
        algorithm = NestedMap(
            inputs=inputs,
            origin=Genome((0.0, 0.5, 1.0)),
            weights=(1.0, 2.0),
            size=size,
            population=population,
            acquisition="mean",
            seed=1,
        )
        assert algorithm.answer() == ()
        for _ in range(2):
            assert len(drive(algorithm, population, two_spheres)) == population

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match="needs the weights of two experts or more among the genes; got 0"):
            build(Box(3), nested=2)
        with pytest.raises(ValueError, match="got 1 that differ; add `weight` to `genes`, in a range that begins"):
            build(space(3, low=1.0, high=2.0), nested=2)
        with pytest.raises(ValidationError, match="greater than or equal to 2"):
            build(space(3), nested=1)
        misfit = CONFIG.validate_python({"kind": "map", "nested": 2}).misfit(2, 4, "routing")
        assert misfit == "map with nested merging scales experts' weights, in spaces of kind parameter; got routing"


@given(
    arrays(float, 4, elements=st.floats(0, 1)),
    arrays(float, (3, 4), elements=st.floats(0, 1)),
    st.floats(0, 1),
)
def test_coefficients_keep_an_input_in_the_box(origin: np.ndarray, inputs: np.ndarray, share: float) -> None:
    low, high = _within(origin, inputs - origin)
    assert (low <= 0).all()
    assert (high >= 1 - 1e-9).all()
    moved = origin + (low + share * (high - low))[:, None] * (inputs - origin)
    assert moved.min() > -1e-9
    assert moved.max() < 1 + 1e-9
