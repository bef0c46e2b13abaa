"""The parameter space: totality, interpolation, names, faults."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.config import ParameterSpaceConfig, load_space, shipped_names
from evomerge.errors import ConfigError
from evomerge.recipe import DEPTH_ROLES, OPERATORS, ROLES
from evomerge.spaces import Gene, Genome, Models, ParameterSpace, build_space

GROUPINGS = (
    {"block": ["attention", "mlp", "norm"]},
    {"mix": ["attention"], "mlp": ["mlp", "norm"]},
    {role: [role] for role in DEPTH_ROLES},
)


def config_of(**changes: Any) -> ParameterSpaceConfig:
    data: dict[str, Any] = {"kind": "parameter", "operator": {"name": "task_arithmetic"}, "genes": {"weight": {}}}
    return ParameterSpaceConfig.model_validate(data | changes)


def space_of(
    config: ParameterSpaceConfig, *, experts: tuple[str, ...] = ("rev", "sort"), layers: int = 7, seed: int = 0
) -> ParameterSpace:
    return ParameterSpace(config, base="base", experts=experts, layers=layers, dtype="bfloat16", seed=seed)


@st.composite
def spaces(draw: st.DrawFn) -> ParameterSpace:
    """Any operator, any subset of its parameters searched, any grouping, any knots."""
    operator = OPERATORS[draw(st.sampled_from(sorted(OPERATORS)))]
    names = draw(st.lists(st.sampled_from(sorted(operator.parameters)), min_size=1, unique=True))
    layers = draw(st.integers(1, 9))
    knots = st.integers(1, layers) | st.just("layer")
    groups = draw(st.sampled_from(GROUPINGS))
    config = config_of(
        operator={"name": operator.name, "preset": draw(st.sampled_from(["paper", "mergekit"]))},
        knots=draw(knots),
        groups=groups,
        genes={name: {"knots": draw(st.none() | knots)} for name in names},
    )
    experts = tuple(f"e{i}" for i in range(draw(st.integers(1, operator.max_sources or 4))))
    return space_of(config, experts=experts, layers=layers, seed=draw(st.integers(0, 99)))


@st.composite
def spaces_with_genomes(draw: st.DrawFn) -> tuple[ParameterSpace, Genome]:
    space = draw(spaces())
    size = len(space.genes)
    return space, Genome(tuple(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))))


@settings(deadline=None)
@given(spaces_with_genomes())
def test_every_genome_is_a_recipe(case: tuple[ParameterSpace, Genome]) -> None:
    space, genome = case
    recipe = space.decode(genome)
    assert recipe.digest == space.decode(Genome(tuple(list(genome.values)))).digest
    for name, field in recipe.parameters:
        bounds = [(gene.low, gene.high) for gene in space.genes if gene.name.split(".")[0] == name]
        values = [value for _, rows in field.by_role() for row in rows for value in row]
        assert all(low - 1e-6 <= value <= high + 1e-6 for low, high in bounds[:1] for value in values)


@settings(deadline=None)
@given(spaces())
def test_names_are_distinct_and_corners_and_start_decode(space: ParameterSpace) -> None:
    assert len({gene.name for gene in space.genes}) == len(space.genes) == len(space.start)
    for corner in (0.0, 1.0):
        space.decode(Genome((corner,) * len(space.genes)))
    assert space.start.values == tuple(gene.start for gene in space.genes)
    space.decode(space.start)


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12), st.sampled_from([2, 3, 4]))
def test_interpolation_is_exact_at_the_knots(values: list[float], knots: int) -> None:
    layers = 7 if knots != 3 else 5
    space = space_of(config_of(knots=knots, genes={"weight": {"low": -2, "high": 3}}), layers=layers)
    genome = Genome(tuple(values[: len(space.genes)]))
    field = space.decode(genome).parameter("weight")
    step = (layers - 1) // (knots - 1)
    for role in DEPTH_ROLES:
        for source in range(2):
            column = [5 * v - 2 for v in genome.values[source * knots : (source + 1) * knots]]
            at_knots = [field.at(role, k * step)[source] for k in range(knots)]
            assert at_knots == pytest.approx(column, abs=1e-6)
            expected = np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, knots), column)
            assert [field.at(role, layer)[source] for layer in range(layers)] == pytest.approx(expected, abs=2e-6)
    edges = [5 * v - 2 for v in genome.values[2 * knots :]]
    assert [*field.at("embed", None), *field.at("head", None)] == pytest.approx(edges, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=18, max_size=18))
def test_one_knot_per_layer_is_the_genome_itself(values: list[float]) -> None:
    space = space_of(config_of(knots="layer"))
    field = space.decode(Genome(tuple(values))).parameter("weight")
    rounded = [round(value, 6) for value in values]
    assert [row[0] for row in field.rows[0]] == rounded[:7]
    assert [row[1] for row in field.rows[0]] == rounded[7:14]
    assert [*field.at("embed", None), *field.at("head", None)] == rounded[14:]
    same = space_of(config_of(knots=7))
    assert same.decode(Genome(tuple(values))).digest == space.decode(Genome(tuple(values))).digest


def test_one_knot_is_one_value_for_the_whole_depth() -> None:
    space = space_of(config_of(knots=1), experts=("rev",))
    field = space.decode(Genome((0.25, 0.5, 0.75))).parameter("weight")
    assert {field.at(role, layer) for role in DEPTH_ROLES for layer in range(7)} == {(0.25,)}
    assert (field.at("embed", None), field.at("head", None)) == ((0.5,), (0.75,))


def test_groups_have_genes_of_their_own() -> None:
    space = space_of(config_of(knots=1, groups={"mix": ["attention", "norm"], "mlp": ["mlp"]}), experts=("rev",))
    assert [gene.name for gene in space.genes] == [
        "weight.mix.rev.k0",
        "weight.mlp.rev.k0",
        "weight.embed.rev",
        "weight.head.rev",
    ]
    field = space.decode(Genome((0.1, 0.2, 0.3, 0.4))).parameter("weight")
    assert [field.at(role, 3) for role in ROLES] == [(0.1,), (0.2,), (0.1,), (0.3,), (0.4,)]


def test_gene_names_order_and_start() -> None:
    config = config_of(knots=2, genes={"weight": {}, "lambda": {"start": 0.6, "knots": 1}})
    space = space_of(config)
    assert [gene.name for gene in space.genes] == [
        *("weight.block.rev.k0", "weight.block.rev.k1", "weight.block.sort.k0", "weight.block.sort.k1"),
        *("weight.embed.rev", "weight.embed.sort", "weight.head.rev", "weight.head.sort"),
        *("lambda.block.k0", "lambda.embed", "lambda.head"),
    ]
    assert space.genes[0] == Gene(name="weight.block.rev.k0", low=0.0, high=1.0, start=0.5)
    assert space.decode(space.start).parameter("lambda").at("head", None) == (0.6,)


def test_start_is_the_operators_default_drawn_into_the_range() -> None:
    space = space_of(config_of(genes={"weight": {"low": 0.8, "high": 1.2}}), experts=("a", "b", "c"))
    assert {gene.start for gene in space.genes} == {0.0}
    assert space.decode(space.start).parameter("weight").at("mlp", 0) == (0.8, 0.8, 0.8)


def test_parameters_not_searched_are_fixed_or_default() -> None:
    config = config_of(operator={"name": "ties"}, fixed={"density": 0.3}, genes={"lambda": {}})
    recipe = space_of(config, experts=("a", "b", "c")).decode(Genome((0.5,) * 6))
    assert recipe.parameter("density").at("mlp", 0) == (0.3, 0.3, 0.3)
    assert recipe.parameter("weight").at("mlp", 0) == (1.0, 1.0, 1.0)
    assert recipe.parameter("lambda").width == 1
    config = config_of(genes={"lambda": {}})
    recipe = space_of(config, experts=("a", "b", "c")).decode(Genome((0.5,) * 6))
    assert recipe.parameter("weight").at("mlp", 0) == (0.333333,) * 3


def test_masks_are_shared_by_candidates_and_differ_between_runs() -> None:
    config = config_of(operator={"name": "dare_ties"})
    space, other = space_of(config), space_of(config, seed=1)
    low, high = (space.decode(Genome((v,) * len(space.genes))) for v in (0.2, 0.8))
    assert low.mask_seed == high.mask_seed != other.decode(other.start).mask_seed
    assert 0 < low.mask_seed < 2**31


def test_linear_merges_experts_only() -> None:
    recipe = space_of(config_of(operator={"name": "linear"})).decode(Genome((0.5,) * 12))
    assert (recipe.base, recipe.sources) == (None, ("rev", "sort"))


def test_all_faults_come_at_once() -> None:
    config = config_of(operator={"name": "slerp"}, knots=9, genes={"t": {}})
    with pytest.raises(ConfigError) as caught:
        space_of(config)
    assert [fault.path for fault in caught.value.faults] == ["$.space.operator.name", "$.space.knots"]
    assert "rev, sort" in str(caught.value)
    assert "at most 7" in str(caught.value)


def test_knots_of_one_parameter_are_named_by_its_path() -> None:
    config = config_of(operator={"name": "ties"}, genes={"weight": {"knots": 8}, "density": {}})
    with pytest.raises(ConfigError) as caught:
        space_of(config)
    assert [fault.path for fault in caught.value.faults] == ["$.space.genes.weight.knots"]


def test_genome_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="12 genes; got a genome of 3"):
        space_of(config_of()).decode(Genome((0.5,) * 3))


@pytest.mark.parametrize("values", [(), (1.1,), (-1e-9,), (float("nan"),), (0.5, float("inf"))])
def test_genomes_outside_the_box_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"each in \[0, 1\]"):
        Genome(values)


def test_genomes_are_values() -> None:
    assert Genome((0.25, -0.0)) == Genome(tuple(np.array([0.25, 0.0])))
    assert type(Genome(tuple(np.array([0.25]))).values[0]) is float
    assert len({Genome((0.25,)), Genome((0.25,))}) == 1


@pytest.mark.parametrize("name", shipped_names("search_spaces"))
def test_shipped_spaces_load_and_decode(name: str) -> None:
    config = load_space(name)
    most = min((OPERATORS[operator.name].max_sources or 3 for operator in config.operators), default=3)
    models = Models(base="base", experts=("rev", "sort", "ciph")[:most], layers=4, dtype="bfloat16")
    space = build_space(config, models, 0)
    assert {"base", *models.experts} >= set(space.decode(space.start).models) > set()


def shipped(name: str) -> ParameterSpaceConfig:
    config = load_space(name)
    assert isinstance(config, ParameterSpaceConfig)
    return config


def test_lines_grow_from_the_first_layer_to_the_last() -> None:
    space = space_of(shipped("lines"), layers=5)
    weights, scales = ["weight.block.rev.k0", "weight.block.sort.k0"], ["lambda.block.k0", "lambda.block.k1"]
    assert [gene.name for gene in space.genes] == weights + scales
    recipe = space.decode(Genome((0.25, 0.5, 0.25, 0.75)))
    alpha, beta, field = 1.0, 2.0, recipe.parameter("lambda")
    assert [field.at("mlp", layer)[0] for layer in range(5)] == [alpha + beta * layer / 4 for layer in range(5)]
    assert field.at("embed", None) == field.at("head", None) == (alpha,)
    assert {row for _, rows in recipe.parameter("weight").by_role() for row in rows} == {(0.25, 0.5)}


def test_edges_follow_the_first_group() -> None:
    genes = {"lambda": {"low": 0, "high": 1, "edges": "first"}}
    groups = {"mlp": ["mlp", "norm"], "mix": ["attention"]}
    space = space_of(config_of(knots=1, groups=groups, genes=genes))
    field = space.decode(Genome((0.25, 0.75))).parameter("lambda")
    assert (field.at("attention", 0), field.at("embed", None), field.at("head", None)) == ((0.75,), (0.25,), (0.25,))


def test_a_fixed_value_for_each_expert() -> None:
    metric = {"metric": {"sort": 2.0, "rev": 0.5}}
    config = config_of(operator={"name": "metric_average"}, genes={"power": {}}, per_expert=metric)
    recipe = space_of(config).decode(space_of(config).start)
    assert {row for _, rows in recipe.parameter("metric").by_role() for row in rows} == {(0.5, 2.0)}
    expected = r"per_expert.metric: expected one value for each expert \(rev, ciph\); got sort, rev"
    with pytest.raises(ConfigError, match=expected):
        space_of(config, experts=("rev", "ciph"))


@pytest.mark.parametrize(
    ("genes", "per_expert", "message"),
    [
        ("weight", {"lambda": {"rev": 1.0}}, "lambda is shared by all experts; write its one value under fixed"),
        ("lambda", {"weight": {"rev": 99.0}}, r"weight: expected a value in \[-10.0, 10.0\]; got 99.0"),
        ("weight", {"weight": {"rev": 1.0}}, r"either searched \(genes\) or fixed .*; got \['weight'\] twice"),
        ("weight", {"wieght": {"rev": 1.0}}, "got 'wieght'"),
    ],
)
def test_values_per_expert_that_do_not_fit_are_refused(
    genes: str, per_expert: dict[str, dict[str, float]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(genes={genes: {}}, per_expert=per_expert)


def test_quickstart_space_is_small_and_starts_at_the_average() -> None:
    space = space_of(shipped("task_arithmetic"), experts=("rev", "sort", "ciph"), layers=4)
    assert len(space.genes) == 18
    assert space.decode(space.start).parameter("weight").at("mlp", 2) == (0.333333,) * 3
