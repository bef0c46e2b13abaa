"""Grid, kinship, Frank-Wolfe, reinforced choice and quality diversity: what each does by design."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest
from pydantic import TypeAdapter

from evomerge.config import AlgorithmConfig, GridConfig, KinshipConfig, ParameterSpaceConfig, SoupConfig
from evomerge.population import Algorithm, Evaluation, Problem, build_algorithm
from evomerge.population.frank_wolfe import FrankWolfe, places
from evomerge.population.grid import Grid
from evomerge.population.kinship import Kinship
from evomerge.population.quality_diversity import QualityDiversity
from evomerge.population.reinforced import Reinforced
from evomerge.spaces import Gene, Genome, Models, ParameterSpace
from evomerge.spaces.soup import SoupSpace

CORNERS = [Genome(tuple(row)) for row in np.eye(3).tolist()]


def number(name: str = "n", start: float = 0.5) -> Gene:
    return Gene(name=name, low=0.0, high=1.0, start=start)


def choice(options: int) -> Gene:
    return Gene(name="c", low=0.0, high=1.0, start=0.5 / options, choices=tuple(map(str, range(options))))


def drive(
    algorithm: Algorithm, generations: int, costs: Callable[[Genome], Sequence[float]]
) -> list[tuple[Genome, ...]]:
    asked = []
    for _ in range(generations):
        asked.append(algorithm.ask())
        algorithm.tell([Evaluation(genome=genome, costs=tuple(costs(genome))) for genome in asked[-1]])
    return asked


def near(target: Sequence[float]) -> Callable[[Genome], tuple[float]]:
    return lambda genome: (float(np.sum(np.subtract(genome.values, target) ** 2)),)


def soup(experts: int, shares: str) -> SoupSpace:
    names = tuple(f"e{number}" for number in range(experts))
    config = SoupConfig.model_validate({"kind": "soup", "shares": shares})
    return SoupSpace(config, Models(base="base", experts=names, layers=2, dtype="float32"))


def shares_of(space: SoupSpace, genome: Genome) -> tuple[float, ...]:
    recipe = space.decode(genome)
    found = dict(zip(recipe.sources, recipe.parameter("weight").at("mlp", 0), strict=True))
    return tuple(found.get(gene.name.split(".")[1], 0.0) for gene in space.genes)


class TestGrid:
    def test_it_asks_every_combination_once_and_ends(self) -> None:
        grid = Grid(genes=[number(), choice(2), number()], levels=3, population=7)
        asked = [genome.values for generation in drive(grid, 3, near((1.0, 0.75, 0.5))) for genome in generation]
        assert grid.population == 0
        assert len(asked) == len(set(asked)) == 18
        assert {values[0] for values in asked} == {0.0, 0.5, 1.0}
        assert {values[1] for values in asked} == {0.25, 0.75}
        assert grid.answer() == (Genome((1.0, 0.75, 0.5)),)

    def test_it_knows_how_many_evaluations_it_needs(self) -> None:
        assert GridConfig(kind="grid", levels=4).least([0, 3, 0]) == 48


class TestKinship:
    def kinship(self, best: int = 2) -> Kinship:
        return Kinship(first=CORNERS, weights=(1.0,), best=best, population=4, seed=1)

    def test_it_merges_the_best_in_pairs_and_the_best_with_its_least_kin(self) -> None:
        algorithm = self.kinship()
        first, second = drive(algorithm, 2, near((1.0, 0.4, 0.0)))
        assert set(CORNERS) < set(first)
        told = sorted(first, key=near((1.0, 0.4, 0.0)))
        farthest = max(first, key=lambda genome: float(np.linalg.norm(np.subtract(genome.values, told[0].values))))
        wanted = {tuple(np.mean([a.values, b.values], axis=0)) for a, b in (told[:2], (told[0], farthest))}
        assert wanted <= {genome.values for genome in second} | {genome.values for genome in first}

    def test_nothing_is_proposed_twice_and_it_improves(self) -> None:
        asked = [genome for generation in drive(self.kinship(3), 15, near((0.6, 0.3, 0.1))) for genome in generation]
        assert len(asked) == len(set(asked)) == 60
        assert min(map(near((0.6, 0.3, 0.1)), asked))[0] < 0.01

    @pytest.mark.parametrize("shares", ["simplex", "signed"])
    def test_shares_of_a_soup_are_averaged(self, shares: str) -> None:
        space = soup(3, shares)
        algorithm = build_algorithm(
            KinshipConfig(kind="kinship", best=2, population=8), Problem(space=space, weights=(1.0,), seed=1)
        )

        def cost(genome: Genome) -> tuple[float]:
            return near((0.7, 0.3, 0.0))(Genome(shares_of(space, genome)))

        first, second = drive(algorithm, 2, cost)
        one, other = (shares_of(space, genome) for genome in sorted(first, key=cost)[:2])
        assert shares_of(space, second[0]) == pytest.approx(np.mean([one, other], axis=0), abs=2e-6)

    def test_it_goes_on_when_the_best_are_one_recipe(self) -> None:
        space = soup(2, "simplex")
        first = (*space.known, space.start, Genome((1.0, 1.0)))
        assert space.decode(first[2]) == space.decode(first[3])
        algorithm = Kinship(first=first, weights=(1.0,), best=2, population=4, seed=0, crossing=space)
        asked = drive(algorithm, 3, lambda genome: near((0.5, 0.5))(Genome(shares_of(space, genome))))
        assert len({genome for generation in asked for genome in generation}) == 12


class TestFrankWolfe:
    def walker(self, parts: Sequence[Sequence[int]]) -> FrankWolfe:
        start = Genome((1 / 3,) * 3)
        return FrankWolfe(start=start, vertices=CORNERS, parts=parts, weights=(1.0,), population=7, seed=0)

    def test_it_stays_in_the_hull_and_gets_there(self) -> None:
        algorithm = self.walker([range(3)])
        asked = drive(algorithm, 40, near((0.6, 0.3, 0.1)))
        assert all(sum(genome.values) == pytest.approx(1.0) for generation in asked for genome in generation)
        assert near((0.6, 0.3, 0.1))(algorithm.answer()[0])[0] < 0.003

    def test_by_place_it_mixes_vertices(self) -> None:
        algorithm = self.walker([[0], [1], [2]])
        drive(algorithm, 60, near((1.0, 1.0, 0.0)))
        assert near((1.0, 1.0, 0.0))(algorithm.answer()[0])[0] < 0.01

    def test_the_point_stays_where_no_trial_is_better(self) -> None:
        algorithm = self.walker([range(3)])
        drive(algorithm, 5, near((1 / 3, 1 / 3, 1 / 3)))
        assert algorithm.answer()[0] == Genome((1 / 3,) * 3)

    def test_places_are_knots_of_all_experts(self) -> None:
        names = ["weight.block.a.k0", "weight.block.a.k1", "weight.block.b.k0", "weight.block.b.k1", "weight.head.a"]
        assert places([number(name) for name in names]) == [[0, 2], [1, 3], [4]]


class TestReinforced:
    def test_it_finds_the_best_choice_of_each_gene_under_noise(self) -> None:
        random = np.random.default_rng(0)
        genes = [choice(4) for _ in range(12)]
        wanted = random.integers(4, size=12)

        def costs(genome: Genome) -> tuple[float]:
            wrong = [gene.index(v) != w for gene, v, w in zip(genes, genome.values, wanted, strict=True)]
            return (float(np.mean(wrong)) + 0.05 * float(random.standard_normal()),)

        algorithm = Reinforced(genes=genes, levels=2, weights=(1.0,), rate=0.2, population=20, seed=0)
        drive(algorithm, 50, costs)
        best = algorithm.answer()[0]
        assert [gene.index(v) for gene, v in zip(genes, best.values, strict=True)] == wanted.tolist()

    def test_it_begins_near_the_start(self) -> None:
        genes = [number(start=0.0) for _ in range(8)]
        algorithm = Reinforced(genes=genes, levels=3, weights=(1.0,), rate=0.2, population=200, seed=0)
        values = np.array([genome.values for genome in algorithm.ask()])
        assert np.mean(values == 0.0) == pytest.approx(2 / 3, abs=0.05)
        assert set(values.ravel()) == {0.0, 0.5, 1.0}


class TestQualityDiversity:
    def archive(self, seed: int = 0) -> QualityDiversity:
        return QualityDiversity(start=Genome((0.5,) * 4), objectives=2, bins=10, population=20, seed=seed)

    def test_elites_spread_over_the_front(self) -> None:
        algorithm = self.archive()
        drive(algorithm, 60, lambda g: (*near((0.2,) * 4)(g), *near((0.8,) * 4)(g)))
        answer = algorithm.answer()
        means = sorted(float(np.mean(genome.values)) for genome in answer)
        assert means[0] < 0.3
        assert means[-1] > 0.7
        assert len(answer) >= 8
        assert np.mean([np.std(genome.values) for genome in answer]) < 0.12

    def test_a_failure_does_not_stretch_the_grids(self) -> None:
        def costs(genome: Genome) -> tuple[float, ...]:
            return (1e9, 1e9) if genome.values[0] > 0.7 else (*near((0.2,) * 4)(genome), *near((0.6,) * 4)(genome))

        algorithm = self.archive()
        drive(algorithm, 40, costs)
        assert len(algorithm.answer()) >= 6


def test_a_parameter_space_knows_each_expert_alone() -> None:
    keys = {
        "kind": "parameter",
        "operator": {"name": "ties"},
        "groups": {"attention": ["attention"], "rest": ["mlp", "norm"]},
        "genes": {"lambda": {}, "weight": {"low": -1, "high": 0.5, "edges": "first"}},
    }
    config = ParameterSpaceConfig.model_validate(keys)
    space = ParameterSpace(config, base="base", experts=("a", "a.b", "k1"), layers=4, dtype="float32", seed=0)
    assert len(space.known) == 3
    for seed, expert in zip(space.known, range(3), strict=True):
        rows = {row for _, rows in space.decode(seed).parameter("weight").by_role() for row in rows}
        assert rows == {tuple(0.5 if other == expert else 0.0 for other in range(3))}
    assert all(one != other for one, other in combinations(space.known, 2))


def test_a_space_that_knows_nothing_gets_random_ones_from_the_runs_seed() -> None:
    keys = {"kind": "parameter", "operator": {"name": "slerp"}, "genes": {"t": {}}}
    config = ParameterSpaceConfig.model_validate(keys)
    space = ParameterSpace(config, base="base", experts=("a",), layers=4, dtype="float32", seed=0)
    assert space.known == ()
    one, same, other = (Problem(space=space, weights=(1.0,), seed=seed).founders for seed in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) == 4


@pytest.mark.parametrize("kind", ["kinship", "frank_wolfe"])
def test_experts_that_a_narrow_range_does_not_tell_apart_are_replaced(kind: str) -> None:
    keys = {"kind": "parameter", "operator": {"name": "task_arithmetic"}, "knots": 1}
    config = ParameterSpaceConfig.model_validate({**keys, "genes": {"weight": {"low": 1, "high": 2, "edges": "first"}}})
    space = ParameterSpace(config, base="base", experts=("a", "b"), layers=4, dtype="float32", seed=0)
    problem = Problem(space=space, weights=(1.0,), seed=0)
    assert (len(space.known), len(problem.known)) == (2, 1)
    chosen: AlgorithmConfig = TypeAdapter(AlgorithmConfig).validate_python({"kind": kind})
    algorithm = build_algorithm(chosen, problem)
    asked = drive(algorithm, 3, lambda genome: (sum(genome.values),))
    assert len({genome for generation in asked for genome in generation}) > 12
