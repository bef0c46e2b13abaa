"""Coarse to fine: lifting keeps what a genome means, and stages take over where the one before ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evomerge.config import AlgorithmConfig, ParameterSpaceConfig, RefinedConfig
from evomerge.errors import ConfigError
from evomerge.population import Algorithm, Evaluation, Problem, build_algorithm
from evomerge.population.cma import Cma
from evomerge.population.latent import Distribution, lifted, to_genome
from evomerge.recipe import Recipe
from evomerge.spaces import Genome, ParameterSpace
from evomerge.spaces.knots import lift, over_depth

LAYERS = 10


def space(knots: int | str, **changes: Any) -> ParameterSpace:
    data = {
        "kind": "parameter",
        "operator": {"name": "ties", "options": {"aggregate": ["mean", "sum"]}},
        "knots": knots,
        "groups": {"attention": ["attention"], "rest": ["mlp", "norm"]},
        "genes": {"weight": {"low": -0.5, "high": 1}, "density": {"knots": 2}, "lambda": {"edges": "first"}},
    }
    config = ParameterSpaceConfig.model_validate(data | changes)
    return ParameterSpace(config, base="base", experts=("a", "b"), layers=LAYERS, dtype="float32", seed=0)


def numbers(recipe: Recipe) -> list[float]:
    return [v for _, field in recipe.parameters for _, rows in field.by_role() for row in rows for v in row]


def stages(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "refined", "stages": list(stages)}


def stage(kind: str, **keys: Any) -> dict[str, Any]:
    return {"algorithm": {"kind": kind, "population": 8}, **keys}


def built(keys: dict[str, Any], where: ParameterSpace, objectives: int = 1) -> Algorithm:
    config = TypeAdapter(AlgorithmConfig).validate_python(keys)
    return build_algorithm(config, Problem(space=where, weights=(1.0,) * objectives, seed=3))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(1, 4), (2, 5), (4, 7), (1, "layer"), (4, "layer"), (8, "layer")]), st.data())
def test_a_lifted_genome_means_what_it_meant(pair: tuple[int, int | str], data: st.DataObject) -> None:
    knots, own = pair
    fine = space(own)
    coarse, matrix = fine.coarser(knots)
    assert matrix.shape == (len(fine.genes), len(coarse.genes))
    values = data.draw(st.lists(st.floats(0, 1), min_size=len(coarse.genes), max_size=len(coarse.genes)))
    before, after = coarse.decode(Genome(tuple(values))), fine.decode(Genome(tuple(np.clip(matrix @ values, 0.0, 1.0))))
    assert numbers(after) == pytest.approx(numbers(before), abs=2e-6)
    assert (after.options, after.transforms) == (before.options, before.transforms)


def test_bends_that_no_knot_meets_are_followed_closely() -> None:
    profile = over_depth([0.0, 1.0, 0.0, 1.0], 32)
    followed = over_depth([*(lift(4, 8, 32) @ [0.0, 1.0, 0.0, 1.0])], 32)
    assert 0.0 < np.max(np.abs(np.subtract(profile, followed))) < 0.15
    assert followed != profile


def test_fewer_knots_than_one_are_refused_and_more_change_nothing() -> None:
    fine = space(4)
    with pytest.raises(ValueError, match="at least one knot"):
        fine.coarser(0)
    same, matrix = fine.coarser(9)
    assert same.genes == fine.genes
    assert matrix == pytest.approx(np.eye(len(fine.genes)), abs=1e-12)


class TestLiftedDistribution:
    def test_its_mean_is_exact_even_where_the_fold_is_flat(self) -> None:
        spread = Distribution(mean=np.array([0.9, -3.0, 0.1]), sigma=0.2)
        matrix = lift(3, 5, 9)
        expected = matrix @ to_genome(spread.mean).values
        assert to_genome(lifted(spread, matrix, 0.05).mean).values == pytest.approx(expected, abs=1e-9)

    def test_its_covariance_is_that_of_lifted_samples(self) -> None:
        random = np.random.default_rng(0)
        root = np.array([[0.05, 0.0], [0.03, 0.02]])
        spread = Distribution(mean=np.array([0.3, -0.1]), sigma=1.0, covariance=root @ root.T)
        matrix = lift(2, 4, 9)
        fine = lifted(spread, matrix, 1e-6)
        samples = spread.mean + random.standard_normal((20_000, 2)) @ root.T
        boxes = np.array([matrix @ to_genome(sample).values for sample in samples])
        latents = np.arcsin(2.0 * boxes - 1.0) / 2.0
        assert fine.covariance is not None
        found = fine.sigma**2 * fine.covariance
        assert found == pytest.approx(np.cov(latents.T), rel=0.1, abs=1e-5)

    def test_what_few_genes_cannot_express_varies_a_little(self) -> None:
        fine = lifted(Distribution(mean=np.zeros(1), sigma=0.2), lift(1, 4, 9), 0.05)
        assert fine.covariance is not None
        spreads = np.linalg.eigvalsh(fine.sigma**2 * fine.covariance)
        assert spreads == pytest.approx([0.05**2] * 3 + [4 * 0.2**2 + 0.05**2])
        assert np.linalg.det(fine.covariance) == pytest.approx(1.0)


def drive(algorithm: Algorithm, generations: int) -> list[tuple[Genome, ...]]:
    asked = []
    for _ in range(generations):
        asked.append(algorithm.ask())
        algorithm.tell([Evaluation(genome=g, costs=cost(g)) for g in asked[-1]])
    return asked


def cost(genome: Genome) -> tuple[float]:
    return (float(np.mean((np.array(genome.values) - 0.7) ** 2)),)


def test_genomes_lie_on_few_knots_first_and_the_next_stage_starts_from_them() -> None:
    fine = space(7)
    keys = stages(stage("nsga2", knots=1, evaluations=70), stage("nsga2", knots=4, evaluations=16), stage("nsga2"))
    algorithm = built(keys, fine)
    asked = drive(algorithm, 11)
    _, matrix = fine.coarser(1)
    onto = matrix @ np.linalg.pinv(matrix)
    off = [max(np.max(np.abs(onto @ g.values - g.values)) for g in generation) for generation in asked]
    assert max(off[:9]) < 1e-9 < off[9], "8 generations of 8 fit into 70"
    best = min(cost(genome)[0] for generation in asked[:8] for genome in generation)
    assert min(abs(cost(genome)[0] - best) for genome in asked[8]) < 1e-12


def test_a_distribution_goes_on_where_it_was() -> None:
    fine = space("layer")
    keys = stages(stage("cma", knots=2, evaluations=240), stage("cma"))
    algorithm = built(keys, fine)
    drive(algorithm, 30)
    (before, *_), later = algorithm.answer(), drive(algorithm, 1)[0]
    fresh = Cma(start=fine.start, weights=(1.0,), population=8, sigma=0.2, seed=0)
    first = np.mean([cost(genome)[0] for genome in drive(fresh, 1)[0]])
    assert cost(before)[0] < 0.5 * first
    assert np.mean([cost(genome)[0] for genome in later]) < 0.7 * first


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (stages(stage("cma")), "at least 2"),
        (stages(stage("cma", knots=2), stage("cma")), "expected knots and evaluations in each but the last"),
        (stages(stage("cma", knots=2, evaluations=8), stage("cma", knots=4)), "leave both out"),
        (stages(stage("cma", knots=2, evaluations=7), stage("cma")), "one generation of 8; got 7"),
        (
            stages(*(stage("cma", knots=k, evaluations=8) for k in (4, 2)), stage("cma")),
            r"more knots from stage to stage; got \[4, 2\]",
        ),
        (stages(stage("cma", knots=2, evaluations=8), {"algorithm": {"kind": "refined"}}), "refined inside refined"),
        (stages(stage("cmo", knots=2, evaluations=8), stage("cma")), "expected one of|did not match|expected tags"),
    ],
)
def test_stages_that_make_no_sense_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(AlgorithmConfig).validate_python(keys)


def test_stages_that_cannot_take_their_genes_or_objectives_are_refused() -> None:
    many = stages(stage("map", knots=4, evaluations=8), stage("cma"))
    with pytest.raises(ConfigError, match=r"stages\[0\].*map takes at most 8 genes"):
        built(many, space(7))
    with pytest.raises(ValueError, match="refined: islands needs at least 2 objectives"):
        built({"kind": "refined"}, space(7))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (stages(stage("cma", knots=8, evaluations=8), stage("cma")), r"stages\[0\].*as the space has; got 8"),
        (stages(stage("grid", knots=1, evaluations=9), stage("cma")), r"stages\[0\].*grid needs .* here; got 9"),
    ],
)
def test_stages_that_are_finer_than_the_space_or_too_short_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(keys, space(7))
    built(stages(stage("cma", knots=7, evaluations=8), stage("cma")), space(7))


def test_a_stage_takes_no_warm_start() -> None:
    warm = {"knots": 2, "evaluations": 8, "algorithm": {"kind": "cma", "population": 8, "warm_start": "/earlier"}}
    with pytest.raises(ValidationError, match="leave warm_start out"):
        TypeAdapter(AlgorithmConfig).validate_python(stages(warm, stage("cma")))


def test_the_size_of_each_generation_is_known_beforehand() -> None:
    config = RefinedConfig.model_validate(
        stages(
            {"knots": 1, "evaluations": 20, "algorithm": {"kind": "cma", "population": 8}},
            {"algorithm": {"kind": "cma", "population": 12}},
        )
    )
    assert [config.population_at(asked) for asked in (0, 8, 16, 28)] == [8, 8, 12, 12]
    assert [config.stage_at(asked) for asked in (0, 8, 16, 28)] == [0, 0, 1, 1]
